"""R models of one architecture trained as one program: parameters stacked, forward pass vmapped.

A step takes the gradients of :mod:`polytask.gradients` and gives them to one optimizer for all replicas.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polytask.balance import Balance
from polytask.balancing import Balancing
from polytask.errors import ConfigError, TrainingError
from polytask.gradients import Named, Point, Programs, Readers, readers
from polytask.gramian import Found, Rows, TaskGradients, collect, output_gramians, sum_of, table_of
from polytask.kernels.rows import sum_rows
from polytask.nn.embedding import Tables
from polytask.nn.models import Model
from polytask.optimizers import PLAIN, Optimizers
from polytask.updates import Updates


class Looked(NamedTuple):
    """A batch with what it looks up: the ``point`` for the programs, the row numbers ``lookups`` [R, B, S] by name."""

    point: Point
    lookups: Named


class Stack:
    """The stacked state of ``models`` and the step that trains them together.

    While it exists the models' parameters are views of the stack, so a model can be evaluated at any moment.
    Tables of different height are padded with rows that are never looked up. ``rates`` [R] are the learning
    rates; ``decay`` is decoupled and touches only the rows of the batch; ``clip`` bounds each replica's
    gradient norm (0: off). A batch is taken in ``accumulate`` micro-batches. ``programs`` makes what computes the
    gradients.
    """

    def __init__(
        self,
        models: Sequence[Model],
        rates: Sequence[float],
        *,
        optimizers: Optimizers = PLAIN,
        decay: float = 0.0,
        clip: float = 0.0,
        accumulate: int = 1,
        programs: Callable[[Model], Programs] = Programs,
    ) -> None:
        self.models, self.rates = list(models), torch.tensor(rates)
        self.accumulate = accumulate
        self.programs = programs(models[0])
        self._readers: Readers | None = None
        self._sums = Sums()
        self.alike = all(m.inputs == models[0].inputs for m in models)
        self.parameters = {n: _stacked([m.get_parameter(n) for m in models]) for n, _ in models[0].named_parameters()}
        constants = [n for n in models[0].state_dict() if n not in self.parameters]
        self.constants = {n: _padded([m.get_buffer(n) for m in models]) for n in constants}
        self.tables = [f"{n}.weight" for n, module in models[0].named_modules() if isinstance(module, Tables)]
        self.dense = [n for n in self.parameters if n not in self.tables]
        self._held, self._whole = [*self.parameters.values(), *self.constants.values()], torch.ones(len(models))
        self.updates = Updates(self.parameters, self.tables, self.rates, optimizers, (decay, clip))

    def step(
        self,
        batch: Any,
        balancing: Balancing | Tensor,
        factor: float = 1.0,
        moment: tuple[int, int] = (1, 0),
        at: int = 0,
    ) -> Tensor:
        """Train on ``batch`` [R, B, ...]; the losses [R, T] before the update.

        ``balancing`` gives the weights of the tasks; a tensor [R, T] fixes them. ``factor`` scales the learning
        rates. ``moment`` is the (epoch, step) for what is drawn, ``at`` the step counted over the whole training. A
        loss or gradient that is not finite is a :class:`TrainingError`, and nothing is updated.
        """
        if isinstance(balancing, Tensor):
            balancing = Balancing(Balance(), balancing, ())
        if self._one_program and balancing.constant:
            return self._at_once(batch, balancing, factor)
        cuts = _cuts(batch, self.accumulate)
        shares = micro_shares(cuts, len(self.models), len(self.models[0].schema.tasks))
        found = self._gradients(cuts, shares, balancing, moment, at)
        if not _finite([found.losses, *found.dense.values(), *(values for _, _, values in found.rows)]):
            raise TrainingError(self._blame(found.losses, cuts, balancing))
        self.updates.apply(found, factor)
        if balancing.looks:
            again = [self.programs.losses(self.look_up(c).point) * s for c, s in zip(cuts, shares, strict=True)]
            balancing.after(found.losses, sum_of(again), moment)
        return found.losses

    def look_up(self, batch: Any, portion: float = 1.0) -> "Looked":
        """Where the programs are evaluated, and the row numbers [R, B, S] of each table's replicas laid end to end."""
        return self._looked(batch, torch.full((len(self.models),), portion), self.parameters, self.constants)

    def _looked(self, batch: Any, portion: Tensor, parameters: Named, constants: Named) -> "Looked":
        if self.alike:
            found = self.models[0].lookups(batch)
        else:
            each = [m.lookups(type(batch)(*(t[r] for t in batch))) for r, m in enumerate(self.models)]
            found = {name: torch.stack([rows[name] for rows in each]) for name in each[0]}
        start = torch.arange(len(self.models))[:, None, None]
        several = len(self.models) > 1
        index = {n: rows + start * parameters[table_of(n)].shape[1] if several else rows for n, rows in found.items()}
        rows = {n: _rows(parameters[table_of(n)].flatten(end_dim=1), i) for n, i in index.items()}
        return Looked(Point({n: parameters[n] for n in self.dense}, constants, rows, batch, portion), index)

    def _gradients(
        self, cuts: Sequence[Any], shares: Tensor, balancing: Balancing, moment: tuple[int, int], at: int
    ) -> "Found":
        """What the optimizer is given: from one weighted pass where the weights are known, else from one per task."""
        if balancing.reads_gradients and balancing.due(at):
            if balancing.balance.at == "parameters" and balancing.balance.rows == 1:
                return self._by_task(self._points(cuts), shares, balancing, moment)
            self._sample(self.look_up(cuts[0], 1 / len(cuts)), balancing, moment)
        elif not balancing.reads_gradients and not balancing.constant:
            points = self._points(cuts)
            if len(points) > 1:  # the losses of the whole batch come first
                return self._by_task(points, shares, balancing, moment)
            losses, gradient = balancing.traced(self.programs, points[0].point, moment)
            return Found(losses, gradient.dense, _flat(gradient.rows, points[0].lookups))
        return self._weighted(cuts, shares, balancing)

    def _points(self, cuts: Sequence[Any]) -> list["Looked"]:
        return [self.look_up(cut, 1 / len(cuts)) for cut in cuts]

    def _weighted(self, cuts: Sequence[Any], shares: Tensor, balancing: Balancing) -> "Found":
        """One pass per micro-batch, with the weights in force; what one task alone reads keeps that task's own."""
        weights, own, names = balancing.weights, balancing.own, frozenset[str]()
        if not balancing.scale_heads and not balancing.constant:
            names = (self._readers or self.readers(self.look_up(cuts[0]).point)).alone
        program, portion = self._program(type(cuts[0]), names), self._whole / len(cuts)

        def passed(cut: Any, share: Tensor) -> Found:
            key, inputs = ("weighted", names, _shapes(cut)), [*self._held, weights * share, own * share, portion, *cut]
            losses, dense, rows = self.programs.run(key, program, inputs, lent=True)
            return Found(losses * share, dense, [(table_of(n), *pair) for n, pair in rows.items()])

        if len(cuts) == 1:
            return passed(cuts[0], shares[0])
        return self._sums.of(map(passed, cuts, shares))

    def _program(self, kind: Callable[..., Any], names: frozenset[str]) -> Callable[..., Any]:
        """Losses and gradient as a function of tensors alone, so that looking rows up is part of what is traced.

        They are the parameters, constants, two kinds of weights, the portion, and the fields of a batch of ``kind``.
        """

        def run(*tensors: Tensor) -> tuple[Tensor, Named, dict[str, tuple[Tensor, Tensor]]]:
            given = iter(tensors)
            parameters = {n: next(given) for n in self.parameters}
            constants = {n: next(given) for n in self.constants}
            weights, own, portion, *fields = given
            looked = self._looked(kind(*fields), portion, parameters, constants)
            losses, gradient = self.programs.weighted(looked.point, weights, own, names)
            rows = {n: (i.flatten(), _wide(gradient.rows[n])) for n, i in looked.lookups.items()}
            return losses, gradient.dense, rows

        return run

    @property
    def _one_program(self) -> bool:
        """Whether a step with static weights, its update included, is one compiled program."""
        return self.programs.compile and self.accumulate == 1 and self.updates.traceable

    def _at_once(self, batch: Any, balancing: Balancing, factor: float) -> Tensor:
        weights = balancing.weights
        rest = [*self._held, weights, weights, self._whole, *batch]
        program, inputs = self._program(type(batch), frozenset()), self.updates.inputs(factor)
        count = len(inputs)

        def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            parameters = dict(zip(self.parameters, tensors[count:], strict=False))
            losses, dense, rows = program(*tensors[count:])
            return losses, self.updates.traced(tensors[:count], parameters, dense, rows, losses)

        found: tuple[Tensor, Tensor] = self.programs.run(("step", _shapes(batch)), run, [*inputs, *rest])
        losses, size = found
        if not math.isfinite(size.item()):
            raise TrainingError(self._blame(losses, [batch], balancing))
        self.updates.count()
        return losses

    def _by_task(
        self, points: Sequence["Looked"], shares: Tensor, balancing: Balancing, moment: tuple[int, int]
    ) -> "Found":
        losses, gradients = self.task_gradients(points, shares, balancing.trained)
        names = gradients.shared
        if balancing.reads_gradients:
            weights = self._asked(losses, gradients, balancing, moment)
        else:
            weights = balancing.weigh_now(losses, moment)[:, None].expand(-1, len(names), -1)
        own = balancing.weights if balancing.scale_heads else balancing.own
        return Found(losses, *gradients.combined(names, weights, own))

    def task_gradients(
        self, points: Sequence["Looked"], shares: Tensor, tasks: Sequence[int]
    ) -> tuple[Tensor, TaskGradients]:
        """Losses [R, T] and the gradients of ``tasks``, those of the others 0, over all micro-batches."""
        known = self.readers(points[0].point)
        each = list(zip(points, shares, strict=True))
        runs = [self.programs.by_task(p.point, s, tuple(tasks), known.penalty) for p, s in each]
        losses = sum_of([loss * s for (loss, _), s in zip(runs, shares, strict=True)])
        return losses, collect([g for _, g in runs], [p.lookups for p in points], tuple(tasks), known, self._heights())

    def _sample(self, looked: "Looked", balancing: Balancing, moment: tuple[int, int]) -> None:
        """Ask for weights by gradients on some rows of the batch: on the parameters, or at the tables' output."""
        share, ones = balancing.balance.rows, torch.ones_like(balancing.own)
        part = self.look_up(looked.point.batch.first(share)) if share < 1 else looked
        if balancing.balance.at == "parameters":
            self._asked(*self.task_gradients([part], ones[None], balancing.trained), balancing, moment)
            return
        known = self.readers(part.point)
        if not (shared := [n for n in part.lookups if known.together(n).any()]):
            raise ConfigError('no table is shared: set balance.at = "parameters"')
        losses, found = self.programs.by_task(part.point, ones, balancing.trained, False, rows_only=True)
        self._require_weighable(losses, balancing)
        balancing.ask(losses, output_gramians(found, shared, balancing.trained, losses.shape[1]), None, moment)

    def _asked(self, losses: Tensor, gradients: TaskGradients, balancing: Balancing, moment: tuple[int, int]) -> Tensor:
        """Weights [R, P, T] on the shared parameters, by the tasks' gradients on them."""
        self._require_weighable(losses, balancing)
        if not (names := gradients.shared):
            raise ConfigError(
                f"the tasks share nothing that balance '{balancing.balance.kind}' could act on; use fixed"
            )
        return balancing.ask(losses, gradients.gramians(names), partial(gradients.jacobian, names), moment)

    def _require_weighable(self, losses: Tensor, balancing: Balancing) -> None:
        if reason := balancing.refuses(losses, self.models[0].schema.task_names):
            raise TrainingError(reason)

    def readers(self, point: Point) -> Readers:
        """Which tasks read what, found out once."""
        if self._readers is None:
            self._readers = readers(self.models[0], point)
        return self._readers

    def _heights(self) -> dict[str, int]:
        return {n: self.parameters[n].shape[1] for n in self.tables}

    def _blame(self, losses: Tensor, cuts: Sequence[Any], balancing: Balancing) -> str:
        """Name the replica and task whose loss or gradient is not finite, or that its balancer cannot weigh."""
        names = self.models[0].schema.task_names
        if len(bad := (~losses.isfinite()).nonzero()):
            return f"loss of task '{names[bad[0][1]]}' is {losses[tuple(bad[0])]:g} in run {int(bad[0][0])}"
        if reason := balancing.refuses(losses, names):
            return reason
        for number in balancing.trained:
            for looked in self._points(cuts):
                _, (found,) = self.programs.by_task(looked.point, balancing.own, (number,), False)
                if not _finite(list(found.named().values())):
                    return f"gradient of task '{names[number]}' is not finite"
        return "the summed gradient is not finite"

    def state(self) -> Named:
        """Every tensor a resumed run needs, by name."""
        return {f"parameter/{n}": p for n, p in self.parameters.items()} | self.updates.state()

    @torch.no_grad()
    def load(self, state: Named) -> None:
        """Take back what :meth:`state` gave."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[f"parameter/{name}"])
        self.updates.load(state)

    def release(self) -> None:
        """Give every model parameters of its own again; a single one keeps those it has, and the stack is spent."""
        for model in self.models if len(self.models) > 1 else ():
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()


class Sums:
    """What micro-batches add up to, in memory that is kept from step to step."""

    def __init__(self) -> None:
        self._kept: Named = {}

    def of(self, parts: Iterable[Found]) -> Found:
        """The sum of ``parts``, each of which may be written over when the next one is asked for."""
        total = Found(torch.zeros(()), {}, [])
        for part in parts:
            dense = total.dense
            for name, gradient in part.dense.items():
                dense[name] = dense[name].add_(gradient) if name in dense else self._copy(name, gradient)
            total.rows.extend((name, *sum_rows(index, values)) for name, index, values in part.rows)
            total = total._replace(losses=total.losses + part.losses)
        return total

    def _copy(self, name: str, value: Tensor) -> Tensor:
        if name not in self._kept:
            self._kept[name] = torch.empty_like(value)
        return self._kept[name].copy_(value)


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
    if len(tensors) == 1:  # what is its own stack is not copied: it may be a large table
        return tensors[0][None]
    if any(t.shape[1:] != rest for t in tensors):
        raise ConfigError("models of different architectures cannot be stacked; train them one after the other")
    stack = tensors[0].new_zeros(len(tensors), *((height, *rest) if tensors[0].dim() else ()))
    for slot, tensor in zip(stack, tensors, strict=True):
        (slot[: tensor.shape[0]] if tensor.dim() else slot).copy_(tensor)
    return stack


def _rows(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.flatten()).view(*index.shape, table.shape[1])


def _flat(rows: Named, index: Named) -> Rows:
    return [(table_of(n), i.flatten(), _wide(rows[n])) for n, i in index.items()]


def _wide(rows: Tensor) -> Tensor:
    """Rows [..., D] one below the other."""
    return rows.reshape(-1, rows.shape[-1])


def _shapes(batch: Iterable[Tensor]) -> tuple[torch.Size, ...]:
    return tuple(t.shape for t in batch)


def _cuts(batch: Any, count: int) -> list[Any]:
    """The batch in ``count`` micro-batches (in one each row at least)."""
    return [batch] if count == 1 else batch.cut(count)


def micro_shares(cuts: Sequence[Any], replicas: int, tasks: int) -> Tensor:
    """The share [M, R, T] of each of M micro-batches in a task's labeled rows, so that their means add up to one."""
    if len(cuts) == 1:
        return torch.ones(1, replicas, tasks)
    counts = torch.stack([(~c.labels.isnan()).sum(dim=1) for c in cuts]).float()
    return torch.where(counts.sum(dim=0) > 0, counts / counts.sum(dim=0).clamp(min=1), 1 / len(cuts))


def _finite(tensors: list[Tensor]) -> bool:
    """Whether every element is finite: a sum of squares is, exactly when they are (short of overflow)."""
    return bool(torch.nn.utils.get_total_norm(tensors).isfinite())
