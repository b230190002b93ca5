"""From the gradients of a stack to its new parameters: optimizers, clipping, decay."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from polytask.gradients import Named
from polytask.gramian import Found, Rows, sum_of, table_of
from polytask.kernels.rows import RowSums, sum_rows
from polytask.optimizers import OPTIMIZERS, Optimizers

Lookups = Mapping[str, tuple[Tensor, Tensor]]
"""Row numbers [N] and gradients [N, D] on them, by the name of what was looked up."""


class Updates:
    """The optimizers of stacked ``parameters`` [R, ...], among them ``tables``, at learning rates ``rates`` [R].

    ``bounds`` are the decay, decoupled, of which only the rows of a batch have a part, and the bound on each replica's
    gradient norm (0: off).
    """

    def __init__(
        self,
        parameters: Named,
        tables: Sequence[str],
        rates: Tensor,
        optimizers: Optimizers,
        bounds: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.parameters, self.tables, self.rates = parameters, tables, rates
        self.dense = OPTIMIZERS[optimizers.dense]
        self.decay, self.clip = bounds
        found = {n: optimizers.of_table(n, parameters[n].flatten(end_dim=1)) for n in tables}
        self.by_row = {n: own for n, own in found.items() if own is not None}
        self.names = [n for n in parameters if n not in self.by_row]  # of what the dense optimizer trains
        self.gradients = {n: torch.zeros_like(parameters[n]) for n in tables if n not in self.by_row}
        self.groups = list(self._groups())
        views = [[nn.Parameter(parameters[n][part]) for n in self.names] for _, part in self.groups]
        groups = [{"params": v, "lr": rate} for v, (rate, _) in zip(views, self.groups, strict=True)]
        self.optimizer = self.dense.make(groups)
        self.dense.start(self.optimizer)
        self._kept: tuple[list[Tensor], list[Tensor]] | None = None  # moments and steps, as traced programs take them
        self._ahead = 0  # steps of traced programs that the optimizer's state does not count yet

    def _groups(self) -> Iterator[tuple[float, slice]]:
        """Neighboring replicas of equal learning rate: an optimizer takes one rate per tensor."""
        start = 0
        for rate, members in groupby(self.rates.tolist()):
            yield rate, slice(start, start := start + len(list(members)))

    @torch.no_grad()
    def apply(self, found: Found, factor: float) -> None:
        """Train on the gradients ``found``, at ``factor`` of the learning rates."""
        self._settle()
        flat = {n: g.flatten(end_dim=1) for n, g in self.gradients.items()}
        for name, index, values in found.rows:
            if name in flat:
                flat[name].index_add_(0, index, values)
        sums = {n: self._summed(n, found.rows) for n in self.by_row}
        gradients = {**self.gradients, **found.dense}
        if self.clip:
            self._clip(gradients, sums)
        if self.decay:
            self._decay(found.rows, sums, factor)
        for group, (rate, part) in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = rate * factor
            for name, parameter in zip(self.names, group["params"], strict=True):
                # fused optimizers read memory in order: a gradient that is a transposed view would be misread
                parameter.grad = gradients[name][part].contiguous()
        self.optimizer.step()
        self.optimizer.zero_grad()  # which lets go of them: they may be lent
        for name, own in sums.items():
            table = self.parameters[name]
            self.by_row[name].update(table.flatten(end_dim=1), own, self.rates[own.rows // table.shape[1]], factor)
        for name, index, _ in found.rows:
            if name in flat:
                _clear(flat[name], index)

    def _summed(self, table: str, rows: Rows) -> RowSums:
        """The gradients on the rows of a table, each row once."""
        own = [(index, values) for name, index, values in rows if name == table]
        return sum_rows(*(torch.cat(each) if len(own) > 1 else each[0] for each in zip(*own, strict=True)))

    def _clip(self, gradients: Named, sums: Mapping[str, RowSums]) -> None:
        squares = [g.reshape(len(g), -1).square().sum(dim=1) for g in gradients.values()]
        for name, (rows, values) in sums.items():
            replicas = rows // self.parameters[name].shape[1]
            squares.append(torch.zeros_like(squares[0]).index_add_(0, replicas, values.square().sum(dim=1)))
        scale = (self.clip / torch.stack(squares).sum(dim=0).sqrt().clamp(min=1e-12)).clamp(max=1.0)
        for g in gradients.values():
            g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))
        for name, (rows, values) in sums.items():
            values.mul_(scale[rows // self.parameters[name].shape[1], None])

    def _decay(self, rows: Rows, sums: Mapping[str, RowSums], factor: float) -> None:
        shrink = 1.0 - self.rates * factor * self.decay
        for name, value in self.parameters.items():
            if name not in self.tables and value.dim() > 2:
                value.mul_(shrink.view(-1, *[1] * (value.dim() - 1)))
        for name in self.tables:
            value = self.parameters[name]
            if name in sums:
                touched = sums[name].rows
            else:
                touched = torch.unique(torch.cat([index for table, index, _ in rows if table == name]))
            value.flatten(end_dim=1)[touched] *= shrink[touched // value.shape[1], None]

    @property
    def traceable(self) -> bool:
        """Whether :meth:`traced` does the same as :meth:`apply`."""
        return not self.decay and not self.by_row

    def inputs(self, factor: float) -> list[Tensor]:
        """What :meth:`traced` reads beside parameters and gradients: scales [G, 2] of G groups, and their moments."""
        if self._kept is None:
            states = [self.optimizer.state[p] for p in self._views()] if self.dense.moments else []
            self._kept = [s[n] for s in states for n in self.dense.moments], [s["step"] for s in states]
        moments, steps = self._kept
        step = steps[0].item() + self._ahead + 1 if steps else 1.0
        groups = zip(self.optimizer.param_groups, self.groups, strict=True)
        scales = torch.tensor([self.dense.scalars(g, rate * factor, step) for g, (rate, _) in groups])
        return [scales, *moments]

    def traced(
        self, inputs: Sequence[Tensor], parameters: Named, dense: Named, rows: Lookups, losses: Tensor
    ) -> Tensor:
        """Change parameters and moments in place, unless something is not finite: as part of a larger program.

        ``inputs`` are those of :meth:`inputs`; gradients are ``dense`` and on ``rows``. The result [] is finite exactly
        if ``losses`` and gradients are (short of overflow).
        """
        gradients = dense | {n: self._whole(n, parameters[n], rows) for n in self.tables}
        size = losses.abs().sum() + sum_of([g.square().sum() for g in gradients.values()])
        if self.clip:
            gradients = {n: g.clone() for n, g in gradients.items()}
            self._clip(gradients, {})
        scales, moments = inputs[0], iter(inputs[1:])
        for number, (_, part) in enumerate(self.groups):
            for name in self.names:
                state = [next(moments) for _ in self.dense.moments]
                group = self.optimizer.param_groups[number]
                change, new = self.dense.update(group, gradients[name][part], state, scales[number])
                for old, value in zip(state, new, strict=True):
                    old.copy_(torch.where(size.isfinite(), value, old))
                parameters[name][part].sub_(torch.where(size.isfinite(), change, 0.0))
        return size

    def count(self) -> None:
        """Count a step that :meth:`traced` made."""
        self._ahead += 1

    def _settle(self) -> None:
        """Tell the optimizer of the steps that were counted."""
        if self._kept is not None and self._kept[1] and self._ahead:
            torch._foreach_add_(self._kept[1], float(self._ahead))
        self._ahead = 0

    def _whole(self, table: str, parameter: Tensor, rows: Lookups) -> Tensor:
        """The gradient on a whole table."""
        found = torch.zeros_like(parameter).flatten(end_dim=1)
        for index, values in [pair for name, pair in rows.items() if table_of(name) == table]:
            found = found.index_add(0, index, values)
        return found.view_as(parameter)

    def state_of(self, name: str) -> list[dict[str, Any]]:
        """What the dense optimizer keeps for a parameter, by group of replicas of one learning rate."""
        self._settle()
        position = self.names.index(name)
        return [self.optimizer.state.get(g["params"][position], {}) for g in self.optimizer.param_groups]

    def state(self) -> Named:
        """Every tensor a resumed run needs, by name."""
        self._settle()
        kept: Named = {}
        for number, parameter in enumerate(self._views()):
            kept |= {f"optimizer/{number}/{k}": v for k, v in self.optimizer.state[parameter].items() if v is not None}
        return kept | {f"tables/{n}/{k}": v for n, own in self.by_row.items() for k, v in own.state.items()}

    def _views(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def load(self, state: Named) -> None:
        """Take back what :meth:`state` gave."""
        views, self._kept, self._ahead = self._views(), None, 0
        for key, value in state.items():
            if key.startswith("optimizer/"):
                _, number, field = key.split("/")
                self.optimizer.state[views[int(number)]][field] = value.clone()
            elif key.startswith("tables/"):
                table, _, field = key.removeprefix("tables/").rpartition("/")
                self.by_row[table].state[field] = value.clone()


def _clear(table: Tensor, rows: Tensor) -> None:
    """Zero the ``rows`` of ``table``; sweeping over all is faster once many are touched."""
    if 8 * len(rows) < len(table):
        table.index_fill_(0, rows, 0.0)
    else:
        table.zero_()
