"""Probes of a training: on one fixed batch, how the tasks' gradients relate, and what each task's step does to the others.

A probe reads the parameters and the optimizer's state and changes neither, and its batch is drawn apart from those of
the training, so a run with probes is bit by bit the run without.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from polytask.affinity import Affinity, Reading
from polytask.data.batch import Batch, Feed, Part
from polytask.gradients import PRECISIONS, Gradient, Named, Point, Programs, Readers
from polytask.gramian import table_of
from polytask.nn.model import MultiTask
from polytask.replicas import Looked, Stack
from polytask.run import TrainConfig

SHARE = 0.05  # of the training's time that probes may take
_ROWS = (1024, 4096)  # a probe has as many rows as a batch, within these bounds
_FIXED = 256  # rows that take as long as what a step costs whatever its size
_OVERHEAD = 1.5  # a probe's time over that of its forward and backward passes
_PER_EPOCH = 2  # probes in one epoch at most


def interval(tasks: int, batch: int, rows: int, steps: int) -> int:
    """Steps between two probes of ``rows`` rows in a training by ``batch`` rows with ``steps`` steps an epoch.

    A forward pass counts 1, a backward pass 2, a step both. A probe takes a forward pass, one backward pass per
    task and, on half of its rows, a forward pass per task and one for the curvature. The result follows from these
    numbers alone, so equal runs are probed at equal steps.
    """
    passes = 1 + 2 * tasks + (tasks + 1) / 2
    cost = _OVERHEAD * passes / 3 * (_FIXED + rows) / (_FIXED + batch)
    return max(math.ceil(cost / SHARE), steps // _PER_EPOCH, 1)


@dataclass(frozen=True)
class Probing:
    """How to probe: every ``every`` steps (0: never; None: as often as 5 % of the time allows).

    ``same_batch``: the lookahead's losses are those of the rows that gave the step, as Fifty et al. (2021) take
    them, and not of other rows.
    """

    every: int | None = None
    same_batch: bool = False


class Probe:
    """The probes of a ``stack`` of R replicas that train with ``own`` weights [R, T] of their tasks.

    ``parts`` and ``configs`` [R] are those of the training. The batch of :class:`Feed`'s epoch 0 has no dropout and
    no hidden categories. Only replicas that train two tasks or more which share parameters are probed, and no
    :class:`~polytask.nn.history.HistoryModel`, whose batches cannot be halved.
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
        self.trained = [(row > 0).nonzero().flatten().tolist() for row in own]
        self.joint = [r for r, tasks in enumerate(self.trained) if len(tasks) > 1]
        self.tasks = sorted({t for r in self.joint for t in self.trained[r]})
        batch, available = configs[0].batch, len(parts[0])
        self.rows = min(max(batch, _ROWS[0]), _ROWS[1], available) // 2 * 2
        every = interval(len(self.tasks), batch, self.rows, -(-available // batch))
        self.every = every if self.probing.every is None else self.probing.every
        model = stack.models[0]
        self.active = isinstance(model, MultiTask) and bool(model.shared() and self.joint and self.rows)

    def due(self, step: int) -> bool:
        """Whether to measure after ``step`` steps of the whole training."""
        return self.active and self.every > 0 and step > 0 and step % self.every == 0

    @torch.no_grad()
    def measure(self, step: int, weights: Tensor, factor: float = 1.0) -> list[dict[str, Any] | None]:
        """Per replica a :class:`Reading` as plain values, None where fewer than two tasks are trained.

        ``weights`` [R, T] of the losses and the ``factor`` of the learning rates are those in force.
        """
        halves = [self.stack.looked_up(half) for half in self._halves]
        shares = _label_shares(self._halves)
        pulled = [self._programs.by_task(h.point, s, tuple(self.tasks), False) for h, s in zip(halves, shares)]
        known = self.stack.readers(halves[0].point)
        found = Found(self, halves, [gradients for _, gradients in pulled], known)
        losses = torch.stack([loss for loss, _ in pulled]).double()
        steps = Steps(found, weights[:, self.tasks], shares[0][:, self.tasks], factor)
        slope, curvature = self._curvature(steps, halves[0].point, losses[0], weights)
        lookahead = self._lookahead(steps, halves[0 if self.probing.same_batch else 1], losses)
        whole = (losses * shares).sum(dim=0)
        products, updates = found.products(), steps.updates()
        readings: list[dict[str, Any] | None] = [None] * len(self.trained)
        for replica in self.joint:
            tasks = self.trained[replica]
            place = [self.tasks.index(t) for t in tasks]
            own = weights[replica, tasks]
            groups = {
                name: Affinity.of(_among(matrix[replica], place), own, updates[name][replica, place].sqrt())
                for name, matrix in products.items()
                if int(found.readers[name][tasks].sum()) > 1
            }
            total = sum(_among(products[name][replica], place) for name in groups)
            moved = sum(updates[name][replica, place] for name in groups)
            assert isinstance(total, Tensor) and isinstance(moved, Tensor)
            readings[replica] = Reading(
                step=step,
                tasks=tuple(self.stack.models[0].schema.task_names[t] for t in tasks),
                weights=tuple(own.tolist()),
                losses=tuple(whole[replica, tasks].tolist()),
                slope=float(slope[replica]),
                curvature=float(curvature[replica]),
                lookahead=tuple(tuple(row.tolist()) for row in lookahead[replica][place][:, tasks]),
                total=Affinity.of(total, own, moved.sqrt()),
                groups=groups,
            ).to_dict()
        return readings
