"""The gradient evidence of a setting: what the probes of its runs say together, over seeds and epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from polytask.affinity import (
    RELATED,
    RELIABLE,
    SURE,
    TOTAL,
    Numbers,
    Reading,
    Relation,
    Summary,
    pairs,
    readings_of,
    summaries,
)
from polytask.run import Run

_FEWEST = 3  # readings of a run that are read at least
_ERRORS = 2.0  # standard errors over the seeds that a cosine must be from 0


@dataclass(frozen=True)
class Cosine:
    """The cosine of two tasks' gradients on some parameters, with standard errors over seeds.

    ``value``: between different rows, with noise taken out; ``reliability`` is the smaller one of the two tasks'.
    ``same``: on the same rows, whose own peculiarities are in it.
    """

    value: float
    error: float
    reliability: float
    same: float
    same_error: float

    @property
    def relation(self) -> Relation:
        """What the tasks are to each other here.

        Aligned or in conflict if the cosine between rows is beyond noise and not small, unrelated if it is small and
        well known. Where it tells nothing, since one batch of rows says little of another, the same rows decide.
        """
        if self.reliability >= RELIABLE and not math.isnan(self.value):
            if abs(self.value) > max(_ERRORS * self.error, RELATED):
                return "aligned" if self.value > 0 else "conflict"
            if self.error <= SURE:
                return "unrelated"
        if abs(self.same) > max(_ERRORS * self.same_error, RELATED):
            return "aligned" if self.same > 0 else "conflict"
        return "noise"

    @property
    def told(self) -> tuple[float, float]:
        """The cosine that ``relation`` hangs on, and its error."""
        known = self.reliability >= RELIABLE and self.error <= SURE
        return (self.value, self.error) if known else (self.same, self.same_error)

    def __str__(self) -> str:
        """The cosine that ``relation`` hangs on, with its error."""
        value, error = self.told
        return f"{value:+.2f} ± {error:.2f}"


@dataclass(frozen=True)
class Evidence:
    """What the probes of a setting's runs say of its ``tasks``.

    ``cosines``: by group of parameters (and :data:`~polytask.affinity.TOTAL`) that of every pair. ``dominance``,
    ``update_share`` and ``loss_share`` are each task's share in gradient norms, optimizer steps and losses,
    ``lookahead[i][j]`` what a step of task i does for task j (Fifty et al., 2021). ``probes`` is their number.
    """

    tasks: tuple[str, ...]
    cosines: dict[str, tuple[Cosine, ...]]
    dominance: Numbers
    update_share: Numbers
    loss_share: Numbers
    lookahead: tuple[Numbers, ...]
    probes: int

    @property
    def tables(self) -> tuple[str, ...]:
        """The groups that are embedding tables."""
        return tuple(n for n in self.cosines if n.startswith("tables."))

    @property
    def trunk(self) -> tuple[str, ...]:
        """The groups of the dense parameters."""
        return tuple(n for n in self.cosines if n != TOTAL and n not in self.tables)

    def of_pair(self, first: str, second: str, groups: Sequence[str]) -> list[Cosine]:
        """The cosine of two tasks on each of the ``groups``."""
        wanted = tuple(sorted((self.tasks.index(first), self.tasks.index(second))))
        place = pairs(len(self.tasks)).index((wanted[0], wanted[1]))
        return [self.cosines[g][place] for g in groups]


def evidence(runs: Sequence[Run]) -> Evidence | None:
    """What the probes of the ``runs`` of one setting say until each run's best epochs; None if there are none."""
    each = [found for r in runs if (found := _until_best(r))]
    if not each:
        return None
    by_run = [summaries(readings) for readings in each]
    names = [n for n in by_run[0] if all(n in found for found in by_run)]
    cosines = {n: _cosines([found[n] for found in by_run]) for n in names}
    every = [r for readings in each for r in readings]
    return Evidence(
        tasks=every[0].tasks,
        cosines=cosines,
        dominance=_mean([s[TOTAL].dominance for s in by_run]),
        update_share=_mean([s[TOTAL].update_share for s in by_run]),
        loss_share=_mean([r.loss_share for r in every]),
        lookahead=tuple(_mean(rows) for rows in zip(*(r.lookahead for r in every), strict=True)),
        probes=len(every),
    )


def _until_best(run: Run) -> list[Reading]:
    """The readings of the epochs until the last of the run's best ones, or the first ones there are.

    After that a training learns its rows by heart, and what the tasks are to each other no longer shows.
    """
    every = readings_of(run.history)
    until = readings_of([h for h in run.history if h["epoch"] <= max([run.kept, *run.own.values()])])
    return until if len(until) >= _FEWEST else every[:_FEWEST]


def _cosines(found: Sequence[Summary]) -> tuple[Cosine, ...]:
    """Every pair's cosine; between rows over the root of the mean reliabilities."""
    reliability = _mean([s.reliability for s in found])
    cosines = []
    for place, (i, j) in enumerate(pairs(len(reliability))):
        least = min(reliability[i], reliability[j])
        scale = math.sqrt(reliability[i] * reliability[j]) if least > 0 else math.nan
        between, error = _over_seeds([s.between[place] for s in found], found[0].spread[place])
        same, same_error = _over_seeds([s.cosine[place] for s in found], math.inf)
        cosines.append(Cosine(between / scale, error / scale, least, same, same_error))
    return tuple(cosines)


def _over_seeds(values: Sequence[float], otherwise: float) -> tuple[float, float]:
    """Mean and standard error; the error is ``otherwise`` where there are not two values."""
    known = [v for v in values if not math.isnan(v)]
    error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else otherwise
    return (fmean(known) if known else math.nan), error


def _mean(rows: Sequence[Numbers]) -> Numbers:
    """The means over the rows of each column, NaN left out."""
    columns = [[v for v in column if not math.isnan(v)] for column in zip(*rows, strict=True)]
    return tuple(fmean(c) if c else math.nan for c in columns)
