"""Probes of a training: on one fixed batch, how the tasks' gradients relate and what each task's step does to others.

A probe reads the parameters and the optimizer's state and changes neither, and its batch is drawn apart from those of
the training: a run with probes is bit by bit the run without.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from polytask.affinity import TOTAL, Affinity, Reading
from polytask.data.batch import Batch, Feed, Part
from polytask.gradients import Point, Programs
from polytask.gramian import table_of
from polytask.nn.model import MultiTask
from polytask.replicas import Stack
from polytask.run import TrainConfig
from polytask.steps import blocks_of, clip_scale, field_ends, fields_of, precondition

SHARE = 0.04  # of the training's time that probes are planned to take; 0.05 is the bound
_ROWS = (1024, 16384)  # bounds of a probe's size
_EPOCHS = 4  # epochs from one probe to the next, within these bounds
_PER_EPOCH = 2  # probes in one epoch at most
# The time of a step and of a probe, in rows that go forward and backward in a step; measured, and on the safe side.
_STEP = 512  # what a step takes whatever its size
_PROBE = 4000  # what a probe takes whatever its size: it runs untraced
_SLOWER = 1.6  # a row in a probe against one in a step, for the same passes


def probe_rows(tasks: int, available: int) -> int:
    """The size of a probe: an even number of the ``available`` rows.

    The signal between two halves grows with the square of their size, as embeddings have a gradient in common only
    where both halves have the same user or item; so probes are rare and large.
    """
    wanted = int(available * _EPOCHS * SHARE / (_SLOWER * _passes(tasks)))
    return min(max(wanted, _ROWS[0]), _ROWS[1], available) // 2 * 2


def interval(tasks: int, rows: int, batch: int, steps: int) -> int:
    """Steps between two probes of ``rows`` rows in a training by ``batch`` rows with ``steps`` steps an epoch.

    It follows from these numbers alone and never from a clock, so equal runs are probed at equal steps. A training
    of fewer steps has no probe.
    """
    cost = (_PROBE + _SLOWER * _passes(tasks) * rows) / (_STEP + batch)
    return max(math.ceil(cost / SHARE), steps // _PER_EPOCH)


def early(every: int, steps: int) -> tuple[int, ...]:
    """The steps of the first probes in a training of ``steps`` steps at least, which affords one per ``every`` steps.

    Of those it affords two are taken early, where the gradients still have a signal; the others follow as they would
    without that, so the share of the time holds for every training that is as long as it is known to be.
    """
    return (max(every // 8, 1), max(every // 2, 1))[: steps // every]


def shortest(config: TrainConfig, steps: int) -> int:
    """The steps that a training surely has, at ``steps`` an epoch: it may stop when nothing improves."""
    patient = config.patience * config.evaluate_every if config.patience else config.epochs
    return steps * min(config.epochs, patient)


def _passes(tasks: int) -> float:
    """What a row goes through in a probe, over what it goes through in a step: a forward pass 1, a backward pass 2.

    In a probe one forward pass, a backward pass per task and, on half of the rows, a forward pass per task and one
    for the curvature.
    """
    return (1 + 2 * tasks + (tasks + 1) / 2) / 3


@dataclass(frozen=True)
class Probing:
    """How to probe: every ``every`` steps (0: never) on ``rows`` rows; None: what 5 % of the training's time allows.

    ``same_batch``: the lookahead's losses are those of the rows that gave the step, as Fifty et al. (2021) take
    them, and not of other rows.
    """

    every: int | None = None
    rows: int | None = None
    same_batch: bool = False


class Probe:
    """The probes of a ``stack`` of R replicas that train with ``own`` weights [R, T] of their tasks.

    ``parts`` and ``configs`` [R] are those of the training. The batch, of epoch 0, which no training has, is without
    dropout and hidden categories. Probed are replicas that train two tasks or more on shared parameters; a
    :class:`~polytask.nn.history.HistoryModel` is not, as its batches have no halves.
    """

    def __init__(
        self,
        stack: Stack,
        parts: Sequence[Part],
        configs: Sequence[TrainConfig],
        own: Tensor,
        probing: Probing | None = None,
    ) -> None:
        self.stack, self.parts, self.configs = stack, parts, configs
        self.probing = probing or Probing()
        trained: list[list[int]] = [(row > 0).nonzero().flatten().tolist() for row in own]
        self.joint = {r: tasks for r, tasks in enumerate(trained) if len(tasks) > 1}
        self.tasks = tuple(sorted({t for tasks in self.joint.values() for t in tasks}))
        batch, available, asked = configs[0].batch, len(parts[0]), self.probing.rows
        self.rows = probe_rows(len(self.tasks), available) if asked is None else min(asked, available) // 2 * 2
        every = interval(len(self.tasks), self.rows, batch, -(-available // batch))
        self.every = every if self.probing.every is None else self.probing.every
        self.early = early(every, shortest(configs[0], -(-available // batch))) if self.probing.every is None else ()
        model = stack.models[0]
        self.active = isinstance(model, MultiTask) and bool(model.shared() and self.joint and self.rows)

    def due(self, step: int) -> bool:
        """Whether to measure after ``step`` steps of the whole training."""
        if not self.active or not self.every or step < 1:
            return False
        return step in self.early or (step % self.every == 0 and step // self.every > len(self.early))

    @torch.no_grad()
    def measure(self, step: int, weights: Tensor, factor: float = 1.0) -> list[dict[str, Any] | None]:
        """Per replica a :class:`Reading` as plain values, None where it is not probed.

        ``weights`` [R, T] of the losses and the ``factor`` of the learning rates are those in force after ``step``
        steps of the whole training.
        """
        look = _Look(self.stack, self._programs, self._halves, self.tasks)
        weights = weights.to(look.losses)
        look.step(weights, factor)
        groups, slope = look.groups(), look.slope(weights)
        half = 0 if self.probing.same_batch else 1
        joint, each = look.ahead(half)
        affinity = 1 - each / look.losses[half][:, None]
        change = ((joint - look.losses[0]) * weights).double().sum(dim=1)
        readings: list[dict[str, Any] | None] = [None] * len(weights)
        for replica, tasks in self.joint.items():
            found = _affinities(groups, replica, self._places(tasks), weights[replica, tasks])
            if not found:
                continue
            readings[replica] = Reading(
                step=step,
                tasks=tuple(self.stack.models[0].schema.task_names[t] for t in tasks),
                weights=tuple(weights[replica, tasks].tolist()),
                losses=tuple(look.whole[replica, tasks].tolist()),
                slope=float(slope[replica]),
                curvature=float(2 * (change - slope)[replica]),
                lookahead=tuple(tuple(row[tasks].tolist()) for row in affinity[replica, self._places(tasks)]),
                total=found.pop(TOTAL),
                groups=found,
            ).to_dict()
        return readings

    def _places(self, tasks: Sequence[int]) -> list[int]:
        """Where ``tasks`` stand among those that are probed."""
        return [self.tasks.index(t) for t in tasks]

    @cached_property
    def _halves(self) -> list[Batch]:
        """The batch, in two; drawn at the first probe, as a training may have none."""
        model, config = self.stack.models[0], self.configs[0]
        every = isinstance(model, MultiTask) and model.every_item
        feed = Feed(self.parts, [c.seed for c in self.configs], self.rows, config.negatives, catalogue=every)
        return next(feed.epoch(0)).cut(2)

    @cached_property
    def _programs(self) -> Programs:
        """In full precision, and in their plain form: a trace costs more than the few probes of a training save."""
        return Programs(self.stack.models[0], trace=False)


class _Group(NamedTuple):
    """Of some parameters the products [R, 2n, 2n], squared step lengths [R, n], and who reads them [n]."""

    products: Tensor
    squares: Tensor
    readers: Tensor


class _Look:
    """One measurement: the gradients of n tasks on both ``halves``, and where each task's step leads."""

    def __init__(self, stack: Stack, programs: Programs, halves: Sequence[Batch], tasks: tuple[int, ...]) -> None:
        self.stack, self.programs, self.tasks = stack, programs, list(tasks)
        looked, self.shares = [stack.look_up(half) for half in halves], _shares(halves)
        self.points = [found.point for found in looked]
        found, gradients = programs.by_task(_joined(self.points), self.shares.flatten(end_dim=1), tasks, False)
        self.losses = found.view(self.shares.shape)
        self.whole = (self.losses * self.shares).sum(dim=0)
        known, ends = stack.readers(self.points[0]), {n: field_ends(stack, n) for n in stack.tables}
        self.blocks = blocks_of(gradients, [found.lookups for found in looked], known, ends)
        self.shared = {n: b for n, b in self.blocks.items() if b.together.any()}

    def step(self, weights: Tensor, factor: float) -> None:
        """Take the optimizer's steps [n, K, N] of each task alone, from its gradient on half a, on what is shared."""
        acting = weights[:, self.tasks]
        acting = acting * clip_scale(self.blocks.values(), acting, self.stack.updates.clip)[:, None]
        scales = {n: precondition(self.stack, n, b, acting, factor) for n, b in self.shared.items()}
        parts = acting / self._first
        self.steps = {n: b.chosen * scales[n] * b.by_task(parts) * b.values[0] for n, b in self.shared.items()}
        self.lengths = {
            n: b.sums((scales[n] * b.by_task(acting) * b.values.sum(dim=0)).square()) for n, b in self.shared.items()
        }

    @property
    def _first(self) -> Tensor:
        """The share [R, n] of half a in the gradients of the whole batch."""
        return self.shares[0][:, self.tasks].clamp(min=1e-12)

    def groups(self) -> dict[str, _Group]:
        """The groups by name: a table, the parameters of a module, or those of one of its experts."""
        found: dict[str, _Group] = {}
        for name, block in self.shared.items():
            products, module = block.products(), name.rpartition(".")[0]
            for expert in block.together.nonzero().flatten().tolist():
                key = f"{module}[{self._label(name, expert)}]" if block.experts > 1 else module
                own = _Group(products[:, expert], self.lengths[name][:, expert], block.readers[self.tasks, expert])
                if key in found:
                    before = found[key]
                    own = _Group(before.products + own[0], before.squares + own[1], before.readers | own[2])
                found[key] = own
        return found

    def _label(self, name: str, expert: int) -> str:
        """The name of a table's field, the number of an expert."""
        return fields_of(self.stack, name)[expert] if name in self.stack.tables else str(expert)

    def ahead(self, half: int) -> tuple[Tensor, Tensor]:
        """Losses [R, T] of half a after the step of all tasks, and [R, n, T] of a half after the step of each."""
        joint = {n: s.sum(dim=0) for n, s in self.steps.items()}
        each = [{n: s[task] for n, s in self.steps.items()} for task in range(len(self.tasks))]
        moved = _joined([self._moved(0, joint), *(self._moved(half, step) for step in each)])
        losses = self.programs.losses(moved).view(len(self.tasks) + 1, *self.whole.shape)
        return losses[0], losses[1:].transpose(0, 1)

    def slope(self, weights: Tensor) -> Tensor:
        """Change [R] of the weighted loss of half a along the optimizer's step, to first order."""
        found = torch.zeros(len(weights), dtype=torch.float64)
        for name, block in self.shared.items():
            gradient = (block.by_task(weights[:, self.tasks] / self._first) * block.values[0]).sum(dim=0)
            found -= block.sums(gradient * self.steps[name].sum(dim=0)).sum(dim=1)
        return found

    def _moved(self, half: int, step: Mapping[str, Tensor]) -> Point:
        """Where a half is evaluated after ``step``: new tensors, nothing is changed in place."""
        point, dense, rows = self.points[half], {}, {}
        for name, value in point.dense.items():
            dense[name] = value - step[name].view_as(value) if name in step else value
        for name, value in point.rows.items():
            table = table_of(name)
            if table in step:
                value = value - step[table][self.shared[table].places[half][name]].view_as(value)
            rows[name] = value
        return point._replace(dense=dense, rows=rows)


def _affinities(groups: Mapping[str, _Group], replica: int, places: list[int], weights: Tensor) -> dict[str, Affinity]:
    """The affinity on each group that two of a replica's tasks read, and under :data:`TOTAL` on all of them."""
    own = {n: g for n, g in groups.items() if int(g.readers[places].sum()) > 1}
    if not own:
        return {}
    count = len(next(iter(own.values())).readers)
    both = [*places, *(count + p for p in places)]
    products = {n: g.products[replica][both][:, both] for n, g in own.items()}
    squares = {n: g.squares[replica, places] for n, g in own.items()}
    products[TOTAL], squares[TOTAL] = (torch.stack(list(each.values())).sum(dim=0) for each in (products, squares))
    return {n: Affinity.of(products[n], weights, squares[n].sqrt()) for n in products}


def _joined(points: Sequence[Point]) -> Point:
    """Several points as one of more replicas: one program run instead of several."""
    found: Point = tree_map(lambda *tensors: torch.cat(tensors), *points)
    return found


def _shares(halves: Sequence[Batch]) -> Tensor:
    """The share [2, R, T] of each half in a task's labeled rows, a half each where there are none."""
    counts = torch.stack([(~h.labels.isnan()).sum(dim=1) for h in halves]).float()
    return torch.where(counts.sum(dim=0) > 0, counts / counts.sum(dim=0).clamp(min=1), 0.5)
