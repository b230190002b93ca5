"""R models of one architecture trained as one program: parameters stacked, forward pass vmapped.

The gradient is taken with respect to the dense parameters and to the table rows a batch looks up, so a step
never differentiates through a whole table. The step's tensor program is traced once per batch shape: the
same operations as the plain form, without its dispatch.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from polytask.errors import ConfigError, TrainingError
from polytask.nn.embedding import Tables
from polytask.nn.model import EVERY
from polytask.nn.models import Model

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "sgd": partial(torch.optim.SGD, fused=True),
}
Rows = dict[str, Tensor]


class Objective(nn.Module):
    """A model's objective as a module, so that it can be called with parameters given from outside."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Rows, batch: Any) -> tuple[Tensor, Tensor]:
        """Losses [T] of a batch, given the table rows it looks up, and the penalty [] the model adds."""
        return self.model.objective(rows, batch)


class Stack:
    """The stacked state of ``models`` and the step that trains them together.

    While it exists the models' parameters are views of the stack, so a model can be evaluated at any moment.
    Tables of different height are padded with rows that are never looked up. ``rates`` [R] are the learning
    rates; ``decay`` is decoupled and touches only the rows of the batch; ``clip`` bounds each replica's
    gradient norm (0: off). With ``trace = False`` the step runs in its plain form.
    """

    def __init__(
        self,
        models: Sequence[Model],
        rates: Sequence[float],
        *,
        optimizer: str = "adam",
        decay: float = 0.0,
        clip: float = 0.0,
        trace: bool = True,
    ) -> None:
        self.models, self.rates = list(models), torch.tensor(rates)
        self.decay, self.clip, self.trace = decay, clip, trace
        self.alike = all(m.inputs == models[0].inputs for m in models)
        self.parameters = {n: _stacked([m.get_parameter(n) for m in models]) for n, _ in models[0].named_parameters()}
        constants = [n for n in models[0].state_dict() if n not in self.parameters]
        self.constants = {n: _padded([m.get_buffer(n) for m in models]) for n in constants}
        self.tables = [f"{n}.weight" for n, module in models[0].named_modules() if isinstance(module, Tables)]
        self.dense = [n for n in self.parameters if n not in self.tables]
        self.gradients = {n: torch.zeros_like(self.parameters[n]) for n in self.tables}
        self.objective = Objective(models[0])
        self.programs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self.groups = list(self._groups())
        views = [[nn.Parameter(value[part]) for value in self.parameters.values()] for _, part in self.groups]
        groups = [{"params": v, "lr": rate} for v, (rate, _) in zip(views, self.groups, strict=True)]
        self.optimizer = OPTIMIZERS[optimizer](groups)

    def _groups(self) -> Iterator[tuple[float, slice]]:
        """Neighboring replicas of equal learning rate: an optimizer takes one rate per tensor."""
        start = 0
        for rate, members in groupby(self.rates.tolist()):
            yield rate, slice(start, start := start + len(list(members)))

    def step(self, batch: Any, weights: Tensor, factor: float = 1.0) -> Tensor:
        """Train on ``batch`` [R, B, ...] with task weights [R, T]; the losses [R, T] before the update.

        ``factor`` scales the learning rates. A loss or gradient that is not finite is a
        :class:`TrainingError`, and nothing is updated.
        """
        flat = self._lookups(batch)
        losses, dense, rows = self._differentiate(batch, weights, flat)
        if not losses.isfinite().all() or not _finite([*dense.values(), *rows.values()]):
            raise TrainingError(self._blame(losses, batch, weights, flat))
        for name, index in flat.items():
            table = self.gradients[_table(name)]
            table.flatten(end_dim=1).index_add_(0, index.flatten(), rows[name].reshape(-1, table.shape[-1]))
        self._update({**self.gradients, **dense}, flat, factor)
        for name, index in flat.items():
            _clear(self.gradients[_table(name)].flatten(end_dim=1), index.flatten())
        return losses

    def _lookups(self, batch: Any) -> Rows:
        """Row numbers [R, B, S] into each table's replicas laid end to end."""
        if self.alike:
            found = self.models[0].lookups(batch)
        else:
            each = [m.lookups(type(batch)(*(t[r] for t in batch))) for r, m in enumerate(self.models)]
            found = {name: torch.stack([rows[name] for rows in each]) for name in each[0]}
        start = torch.arange(len(self.models))[:, None, None]
        return {name: rows + start * self.parameters[_table(name)].shape[1] for name, rows in found.items()}

    def _differentiate(self, batch: Any, weights: Tensor, flat: Rows) -> tuple[Tensor, Rows, Rows]:
        rows = {n: _rows(self.parameters[_table(n)].flatten(end_dim=1), index) for n, index in flat.items()}
        dense = {n: self.parameters[n] for n in self.dense}
        constants = self.constants
        shapes = tuple(t.shape for t in batch)
        with torch.no_grad():
            if shapes not in self.programs:

                def plain(*arguments: Any) -> Any:  # the tracer would count a bound method's self
                    return self._program(*arguments)

                self.programs[shapes] = make_fx(plain)(dense, constants, rows, batch, weights) if self.trace else plain
            return self.programs[shapes](dense, constants, rows, batch, weights)  # type: ignore[no-any-return]

    def _program(
        self, dense: Rows, constants: Rows, rows: Rows, batch: Any, weights: Tensor
    ) -> tuple[Tensor, Rows, Rows]:
        """Losses [R, T] and the gradients of the weighted sums for dense parameters and looked-up rows."""

        def one(dense: Rows, constants: Rows, rows: Rows, batch: Any) -> tuple[Tensor, Tensor]:
            named = {f"model.{n}": p for n, p in {**dense, **constants}.items()}
            found: tuple[Tensor, Tensor] = functional_call(self.objective, named, (rows, batch))
            return found

        def total(dense: Rows, rows: Rows) -> tuple[Tensor, Tensor]:
            losses, penalty = vmap(one)(dense, constants, rows, batch)
            return (losses * weights).sum() + penalty.sum(), losses

        (of_dense, of_rows), losses = grad(total, argnums=(0, 1), has_aux=True)(dense, rows)
        return losses, of_dense, of_rows

    @torch.no_grad()
    def _update(self, gradients: Rows, flat: Rows, factor: float) -> None:
        if self.clip:
            self._clip(gradients)
        if self.decay:
            self._decay(flat, factor)
        for group, (rate, part) in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = rate * factor
            for name, parameter in zip(self.parameters, group["params"], strict=True):
                # fused optimizers read memory in order: a gradient that is a transposed view would be misread
                parameter.grad = gradients[name][part].contiguous()
        self.optimizer.step()

    def _clip(self, gradients: Rows) -> None:
        squares = torch.stack([g.reshape(len(g), -1).square().sum(dim=1) for g in gradients.values()])
        scale = (self.clip / squares.sum(dim=0).sqrt().clamp(min=1e-12)).clamp(max=1.0)
        for g in gradients.values():
            g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))

    def _decay(self, flat: Rows, factor: float) -> None:
        shrink = 1.0 - self.rates * factor * self.decay
        for name in self.dense:
            if (value := self.parameters[name]).dim() > 2:
                value.mul_(shrink.view(-1, *[1] * (value.dim() - 1)))
        for name in self.tables:
            value = self.parameters[name]
            touched = torch.unique(torch.cat([i.flatten() for n, i in flat.items() if _table(n) == name]))
            value.flatten(end_dim=1)[touched] *= shrink[touched // value.shape[1], None]

    def _blame(self, losses: Tensor, batch: Any, weights: Tensor, flat: Rows) -> str:
        """Name the replica and task whose loss or gradient is not finite."""
        names = self.models[0].schema.task_names
        if len(bad := (~losses.isfinite()).nonzero()):
            return f"loss of task '{names[bad[0][1]]}' is {losses[tuple(bad[0])]:g} in run {int(bad[0][0])}"
        for number, name in enumerate(names):
            alone = torch.zeros_like(weights)
            alone[:, number] = weights[:, number]
            _, dense, rows = self._differentiate(batch, alone, flat)
            if not _finite([*dense.values(), *rows.values()]):
                return f"gradient of task '{name}' is not finite"
        return "the summed gradient is not finite"

    def state(self) -> Rows:
        """Every tensor a resumed run needs, by name."""
        kept = {f"parameter/{n}": p for n, p in self.parameters.items()}
        for number, parameter in enumerate(self._views()):
            kept |= {f"optimizer/{number}/{k}": v for k, v in self.optimizer.state[parameter].items() if v is not None}
        return kept

    def _views(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def load(self, state: Rows) -> None:
        """Take back what :meth:`state` gave."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[f"parameter/{name}"])
        views = self._views()
        for key, value in state.items():
            if key.startswith("optimizer/"):
                _, number, field = key.split("/")
                self.optimizer.state[views[int(number)]][field] = value.clone()

    def release(self) -> None:
        """Give every model parameters of its own again."""
        for model in self.models:
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()


def _stacked(parameters: list[nn.Parameter]) -> Tensor:
    """[R, ...] with each model's values, padded along the first dimension; the models become views of it."""
    stack = _padded([p.data for p in parameters])
    for slot, parameter in zip(stack, parameters, strict=True):
        parameter.data = slot[: parameter.shape[0]] if parameter.dim() else slot
    return stack


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """[R, ...] with each tensor's values, padded along the first dimension."""
    height = max(t.shape[0] for t in tensors) if tensors[0].dim() else 0
    rest = tensors[0].shape[1:]
    if any(t.shape[1:] != rest for t in tensors):
        raise ConfigError("models of different architectures cannot be stacked; train them one after the other")
    stack = tensors[0].new_zeros(len(tensors), *((height, *rest) if tensors[0].dim() else ()))
    for slot, tensor in zip(stack, tensors, strict=True):
        (slot[: tensor.shape[0]] if tensor.dim() else slot).copy_(tensor)
    return stack


def _table(name: str) -> str:
    """The table a set of looked-up rows comes from."""
    return name.removesuffix(EVERY)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.flatten()).view(*index.shape, table.shape[1])


def _clear(table: Tensor, rows: Tensor) -> None:
    """Zero the ``rows`` of ``table``; sweeping over all is faster once many are touched."""
    if 8 * len(rows) < len(table):
        table.index_fill_(0, rows, 0.0)
    else:
        table.zero_()


def _finite(tensors: list[Tensor]) -> bool:
    """Whether every element is finite: a sum of squares is, exactly when they are (short of overflow)."""
    return bool(torch.nn.utils.get_total_norm(tensors).isfinite())
