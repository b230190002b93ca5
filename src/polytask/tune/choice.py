"""Which trials of a search are evaluated finally: few points of the front, each with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from polytask.pareto import non_dominated

MOST = 4
"""Points that are evaluated finally, at most."""


@dataclass(frozen=True)
class Point:
    """A chosen trial by number: why, and its mean shortfall behind each task's best trial."""

    number: int
    reasons: tuple[str, ...]
    shortfall: float

    @property
    def name(self) -> str:
        """What its setting is called."""
        return f"trial {self.number} ({', '.join(self.reasons)})"


def front(values: Mapping[int, Sequence[float]]) -> list[int]:
    """Numbers of the trials that no other dominates; ``values`` by number, one per task, better higher."""
    numbers = sorted(values)
    return [numbers[place] for place in non_dominated([values[n] for n in numbers])]


def choose(values: Mapping[int, Sequence[float]], tasks: Sequence[str]) -> list[Point]:
    """The knee, which is the trial with the smallest mean shortfall, and each task's best trial of the front.

    ``values`` are those of :func:`front`. A trial's shortfall in a task is how far it is behind the task's best trial,
    relative to that best, as in :mod:`polytask.selection`. Equals go to the smaller mean, then to the earlier. Where
    the points are more than :data:`MOST`, the bests of the tasks that the knee serves well are left out.
    """
    best = [max(column) for column in zip(*values.values(), strict=True)]
    falls = {n: [(b - v) / max(abs(b), 1e-12) for v, b in zip(values[n], best, strict=True)] for n in front(values)}
    knee = min(falls, key=lambda n: (fmean(falls[n]), n))
    reasons: dict[int, list[str]] = {knee: ["knee"]}
    for task in sorted(range(len(tasks)), key=lambda t: -falls[knee][t]):
        number = min(falls, key=lambda n: (falls[n][task], fmean(falls[n]), n))
        if number in reasons or len(reasons) < MOST:
            reasons.setdefault(number, []).append(f"best {tasks[task]}")
    return [Point(n, tuple(why), fmean(falls[n])) for n, why in reasons.items()]
