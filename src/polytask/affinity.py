"""How the gradients of tasks relate: what one probe found, kept compactly, and what several say together.

Pairs of T tasks stand in the order (0, 1), (0, 2), ..., (1, 2), ...; a value that has no meaning is NaN, None in a
file. Every norm is that of the gradient of a task's *weighted* loss, so it is the size with which the task acts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor

Relation = Literal["aligned", "conflict", "unrelated", "noise"]
TOTAL = "total"  # the name of all groups taken together
RELIABLE = 0.01  # below this mean cosine between its two halves a gradient is the noise of the batch alone
RELATED = 0.1  # cosines closer to 0, noise taken out, are those of unrelated tasks
SURE = 0.25  # with a larger error a cosine near 0 says nothing

Numbers = tuple[float, ...]


def pairs(tasks: int) -> list[tuple[int, int]]:
    """The pairs of ``tasks`` tasks, in the order in which their values stand."""
    return list(combinations(range(tasks), 2))


@dataclass(frozen=True)
class Affinity:
    """How T tasks' gradients relate on one group of parameters, from the halves a and b of one batch.

    ``norms`` [T] and ``updates`` [T]: lengths of the tasks' gradients, and of their parts of the optimizer's step.
    ``cosine`` [P] of every pair on the whole batch. ``cross`` [T, T]: cosine of the gradient of task i on half a
    and of task j on half b; its diagonal is the ``reliability``.
    """

    norms: Numbers
    updates: Numbers
    cosine: Numbers
    cross: tuple[Numbers, ...]

    @classmethod
    def of(cls, products: Tensor, weights: Tensor, updates: Tensor) -> Self:
        """From ``products`` [2T, 2T] of gradients whose sum over the halves is that of the batch, half a first.

        ``weights`` [T] of the losses; ``updates`` [T] are taken as they are.
        """
        count, every = len(weights), products.double().numpy()
        halves = every.reshape(2, count, 2, count)
        whole = halves.sum(axis=(0, 2))
        norms = np.sqrt(whole.diagonal().clip(min=0))
        lengths = np.sqrt(every.diagonal()).reshape(2, count)
        cosine = _ratio(whole, np.outer(norms, norms))
        cross = _ratio(halves[0, :, 1], np.outer(*lengths))
        return cls(
            norms=tuple((norms * weights.double().numpy()).tolist()),
            updates=tuple(updates.tolist()),
            cosine=tuple(cosine[np.triu_indices(count, 1)].tolist()),
            cross=tuple(tuple(row) for row in cross.tolist()),
        )

    @property
    def reliability(self) -> Numbers:
        """Cosine [T] of a task's gradients on the two halves: 1 is all signal, 0 all noise of the batch."""
        return tuple(row[t] for t, row in enumerate(self.cross))

    @property
    def between(self) -> Numbers:
        """Cosine [P] of two tasks on different halves, mean of both ways: no noise of rows they share is in it."""
        return tuple((self.cross[i][j] + self.cross[j][i]) / 2 for i, j in pairs(len(self.norms)))

    @property
    def disattenuated(self) -> Numbers:
        """Cosine [P] that the gradients would have without noise; NaN where a reliability is not above 0."""
        return _disattenuated(self.between, self.reliability)

    @property
    def similarity(self) -> Numbers:
        """Magnitude similarity [P]: 2 n m / (n² + m²), from 0 to 1 at equal norms (Yu et al., 2020)."""
        return tuple(_similarity(self.norms[i], self.norms[j]) for i, j in pairs(len(self.norms)))

    @property
    def dominance(self) -> Numbers:
        """Share [T] of each task in the sum of the gradients' norms."""
        return _shares(self.norms)

    @property
    def update_share(self) -> Numbers:
        """Share [T] of each task in the sum of the lengths of their parts of the optimizer's step."""
        return _shares(self.updates)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of 6 significant digits, as a file gives them back."""
        plain = {"norms": self.norms, "updates": self.updates, "cosine": self.cosine}
        return {n: _plain(v) for n, v in plain.items()} | {"cross": [_plain(row) for row in self.cross]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave."""
        read = {n: _read(value[n]) for n in ("norms", "updates", "cosine")}
        return cls(**read, cross=tuple(_read(row) for row in value["cross"]))


@dataclass(frozen=True)
class Reading:
    """One probe of one run after ``step`` steps: its trained ``tasks``, their ``weights`` and ``losses``, unweighted.

    ``slope`` is the change of the weighted loss along the optimizer's step to first order, ``curvature`` twice what
    is left of its true change. ``lookahead`` [T, T]: Z[i][j] = 1 - loss of j after the step of i alone / before it;
    below 0 i hurts j (Fifty et al., 2021). ``groups`` by name, and their ``total``.
    """

    step: int
    tasks: tuple[str, ...]
    weights: Numbers
    losses: Numbers
    slope: float
    curvature: float
    lookahead: tuple[Numbers, ...]
    total: Affinity
    groups: dict[str, Affinity]

    @property
    def loss_share(self) -> Numbers:
        """Share [T] of each task in the weighted loss."""
        return _shares([abs(w * v) for w, v in zip(self.weights, self.losses, strict=True)])

    @property
    def excess(self) -> float:
        """Curvature over twice the first-order gain: above 1 the step is too long, and the loss rises."""
        return self.curvature / (-2 * self.slope) if self.slope < 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values of 6 significant digits, as a file gives them back."""
        return {
            "step": self.step,
            "tasks": list(self.tasks),
            "weights": _plain(self.weights),
            "losses": _plain(self.losses),
            "slope": _plain([self.slope])[0],
            "curvature": _plain([self.curvature])[0],
            "lookahead": [_plain(row) for row in self.lookahead],
            TOTAL: self.total.to_dict(),
            "groups": {name: group.to_dict() for name, group in self.groups.items()},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave."""
        return cls(
            step=value["step"],
            tasks=tuple(value["tasks"]),
            weights=_read(value["weights"]),
            losses=_read(value["losses"]),
            slope=_read([value["slope"]])[0],
            curvature=_read([value["curvature"]])[0],
            lookahead=tuple(_read(row) for row in value["lookahead"]),
            total=Affinity.from_dict(value[TOTAL]),
            groups={name: Affinity.from_dict(group) for name, group in value["groups"].items()},
        )


@dataclass(frozen=True)
class Summary:
    """Several readings of one group of parameters, means over them: [T] per task and [P] per pair.

    ``conflict``: the share of readings with a cosine below 0, ``severity`` the mean of -cosine in them.
    ``disattenuated`` is the mean cosine between halves, over the root of the two mean reliabilities. ``spread`` is
    the noise that is left in ``between``, from the difference of its two ways.
    """

    readings: int
    reliability: Numbers
    dominance: Numbers
    update_share: Numbers
    cosine: Numbers
    conflict: Numbers
    severity: Numbers
    similarity: Numbers
    between: Numbers
    spread: Numbers
    disattenuated: Numbers

    @property
    def error(self) -> Numbers:
        """The standard error [P] of ``disattenuated``, as far as the ``spread`` between the halves shows it."""
        found = []
        for (i, j), spread in zip(pairs(len(self.reliability)), self.spread, strict=True):
            product = self.reliability[i] * self.reliability[j]
            found.append(spread / math.sqrt(product) if product > 0 else math.nan)
        return tuple(found)

    @property
    def relations(self) -> tuple[Relation, ...]:
        """What each pair [P] is to each other: *noise* says that these batches cannot tell, *unrelated* that they can.

        Aligned and in conflict are tasks whose cosine without noise is two standard errors from 0, and not small.
        """
        found: list[Relation] = []
        for (i, j), cosine, error in zip(pairs(len(self.reliability)), self.disattenuated, self.error, strict=True):
            if not min(self.reliability[i], self.reliability[j]) >= RELIABLE or math.isnan(cosine):
                found.append("noise")
            elif abs(cosine) > max(2 * error, RELATED):
                found.append("aligned" if cosine > 0 else "conflict")
            else:
                found.append("unrelated" if error <= SURE else "noise")
        return tuple(found)


def summarize(groups: Sequence[Affinity]) -> Summary:
    """The summary of one or more readings of the same group of one run."""
    cosines = list(zip(*(g.cosine for g in groups), strict=True))
    gaps = [[g.cross[i][j] - g.cross[j][i] for g in groups] for i, j in pairs(len(groups[0].norms))]
    reliability = _means([g.reliability for g in groups])
    between = _means([g.between for g in groups])
    return Summary(
        readings=len(groups),
        reliability=reliability,
        dominance=_means([g.dominance for g in groups]),
        update_share=_means([g.update_share for g in groups]),
        cosine=_means([g.cosine for g in groups]),
        conflict=tuple(_mean([float(c < 0) for c in each if not math.isnan(c)]) for each in cosines),
        severity=tuple(_mean([-c for c in each if c < 0]) for each in cosines),
        similarity=_means([g.similarity for g in groups]),
        between=between,
        spread=tuple(_mean([gap * gap for gap in each]) ** 0.5 / 2 for each in gaps),
        disattenuated=_disattenuated(between, reliability),
    )


def summaries(readings: Sequence[Reading]) -> dict[str, Summary]:
    """By group, and under :data:`TOTAL` for all of them, the summary of the ``readings`` of one run."""
    names = [TOTAL, *dict.fromkeys(name for r in readings for name in r.groups)]
    found = {
        n: [r.total if n == TOTAL else r.groups[n] for r in readings if n == TOTAL or n in r.groups] for n in names
    }
    return {name: summarize(groups) for name, groups in found.items() if groups}


def mean_lookahead(readings: Sequence[Reading]) -> tuple[Numbers, ...]:
    """The mean [T, T] of the readings' lookahead affinities, as a grouping of tasks wants them."""
    return tuple(_means(rows) for rows in zip(*(r.lookahead for r in readings), strict=True))


def readings_of(history: Sequence[Mapping[str, Any]]) -> list[Reading]:
    """The readings that the records of a run's epochs hold."""
    return [Reading.from_dict(value) for record in history for value in record.get("probe", ())]


def _ratio(value: np.ndarray, by: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.divide(value, by, out=np.full_like(value, np.nan), where=by > 0)
    return found


def _disattenuated(between: Numbers, reliability: Numbers) -> Numbers:
    """cos(g_i^a, g_j^b) / sqrt(rho_i rho_j) for every pair."""
    found = []
    for (i, j), cosine in zip(pairs(len(reliability)), between, strict=True):
        first, second = reliability[i], reliability[j]
        found.append(cosine / math.sqrt(first * second) if first > 0 and second > 0 else math.nan)
    return tuple(found)


def _similarity(first: float, second: float) -> float:
    largest = max(first, second)
    if not largest > 0:
        return math.nan
    n, m = first / largest, second / largest
    return 2 * n * m / (n * n + m * m)


def _shares(values: Sequence[float]) -> Numbers:
    total = sum(values)
    return tuple(v / total if total > 0 else math.nan for v in values)


def _means(rows: Sequence[Numbers]) -> Numbers:
    return tuple(_mean([v for v in column if not math.isnan(v)]) for column in zip(*rows, strict=True))


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _plain(values: Sequence[float]) -> list[float | None]:
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]


def _read(values: Sequence[float | None]) -> Numbers:
    return tuple(math.nan if v is None else float(v) for v in values)
