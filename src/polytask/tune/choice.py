"""Which trials of a search are evaluated finally: few points of the front, each with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

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


def front(losses: Mapping[int, Sequence[float]]) -> list[int]:
    """Numbers of the trials that no other dominates; ``losses`` by number, one per task, better lower."""
    return sorted(n for n, own in losses.items() if not any(_dominates(other, own) for other in losses.values()))


def choose(losses: Mapping[int, Sequence[float]], tasks: Sequence[str]) -> list[Point]:
    """The knee, which is the trial with the smallest mean shortfall, and each task's best trial of the front.

    A trial's shortfall in a task is how far it is behind the task's best trial, relative to that best, as in
    :mod:`polytask.selection`. Equals go to the smaller mean, then to the earlier. Where the points are more than
    :data:`MOST`, the bests of the tasks that the knee serves well are left out.
    """
    best = [min(column) for column in zip(*losses.values(), strict=True)]
    falls = {n: [(v - b) / max(abs(b), 1e-12) for v, b in zip(losses[n], best, strict=True)] for n in front(losses)}
    knee = min(falls, key=lambda n: (fmean(falls[n]), n))
    reasons: dict[int, list[str]] = {knee: ["knee"]}
    for task in sorted(range(len(tasks)), key=lambda t: -falls[knee][t]):
        number = min(falls, key=lambda n: (falls[n][task], fmean(falls[n]), n))
        if number in reasons or len(reasons) < MOST:
            reasons.setdefault(number, []).append(f"best {tasks[task]}")
    return [Point(n, tuple(why), fmean(falls[n])) for n, why in reasons.items()]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
