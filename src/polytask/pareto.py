"""The settings that no other beats on every task, and how much they cover: methods compared by their fronts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from polytask.errors import ConfigError
from polytask.metrics import Better

Point = Sequence[float]


@dataclass(frozen=True)
class Front:
    """The ``settings`` of ``method`` that none of its others dominates, and the ``hypervolume`` they cover.

    The hypervolume is in the product of the metrics' units and means something only beside another one from the
    same ``reference``.
    """

    method: str
    settings: tuple[str, ...]
    hypervolume: float
    reference: tuple[float, ...]


def fronts(
    methods: Mapping[str, Mapping[str, Point]], better: Sequence[Better], reference: Point | None = None
) -> list[Front]:
    """The front of each of ``methods``: by setting its value per task [T], for which ``better`` [T] says what is up.

    ``reference`` [T] is where hypervolumes start: the single-task values, say; without it the worst value of any
    setting, per task.
    """
    if not set(better) <= {"higher", "lower"}:
        raise ConfigError("pareto: a metric that is right near 1 has no better side; name another")
    signs = [1 if b == "higher" else -1 for b in better]
    signed = {m: {n: _signed(v, signs) for n, v in settings.items()} for m, settings in methods.items()}
    every = [point for settings in signed.values() for point in settings.values()]
    start = _signed(reference, signs) if reference is not None else [min(column) for column in zip(*every, strict=True)]
    found = []
    for method, settings in signed.items():
        names = list(settings)
        best = [names[n] for n in non_dominated(list(settings.values()))]
        volume = hypervolume([settings[n] for n in best], start)
        found.append(Front(method, tuple(best), volume, tuple(_signed(start, signs))))
    return found


def _signed(point: Point, signs: Sequence[int]) -> list[float]:
    return [s * v for s, v in zip(signs, point, strict=True)]


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Places of the points [N][T], higher better, that no other equals or exceeds everywhere and exceeds somewhere."""
    return [n for n, own in enumerate(points) if not any(dominates(other, own) for other in points)]


def dominates(one: Point, other: Point) -> bool:
    """Whether ``one`` is at least as high everywhere, and somewhere higher."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Volume between ``reference`` [T] and the points [N][T] that exceed it, higher better; exact for any T.

    A point adds its own box without what later ones cover of it (the WFG recursion of While et al., 2012).
    """
    boxes = [[max(v - r, 0.0) for v, r in zip(p, reference, strict=True)] for p in points]
    return _volume([b for b in boxes if all(b)])


def _volume(boxes: Sequence[Point]) -> float:
    """Volume of the union of boxes from 0."""
    found = 0.0
    rest = sorted({tuple(boxes[n]) for n in non_dominated(boxes)})
    for number, box in enumerate(rest, start=1):
        covered = [[min(a, b) for a, b in zip(box, later, strict=True)] for later in rest[number:]]
        found += prod(box) - _volume(covered)
    return found
