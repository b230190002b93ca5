"""How sure a mean of few paired differences is: intervals, tests, and the seeds that would settle it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from statistics import fmean, stdev

from mpmath import betainc

LEVEL = 0.05
"""The probability of a false claim that is accepted."""


@dataclass(frozen=True)
class Estimate:
    """A mean, the ends of its 95 % interval, and its two-sided probability ``p`` under a mean of 0 (None: unknown)."""

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def paired_t(differences: Sequence[float]) -> Estimate:
    """The mean of differences [S] with its interval mean ± t(.975) sd/√S (Student, 1908); none for S = 1."""
    mean = fmean(differences)
    if len(differences) < 2:
        return Estimate(mean)
    error, freedom = standard_error(differences), len(differences) - 1
    half = error * t_quantile(1 - LEVEL / 2, freedom)
    return Estimate(mean, mean - half, mean + half, _two_sided(mean, error, freedom))


def standard_error(values: Sequence[float]) -> float:
    """sd/√S of values [S], S > 1."""
    return stdev(values) / sqrt(len(values))


def equivalence(mean: float, error: float, freedom: int, margin: float) -> float:
    """Probability of a mean this far inside ±margin if it were on the edge: two one-sided tests (Schuirmann, 1987).

    The larger of the two, P(t > (margin - |mean|) / error). It is at most .05 exactly where the 90 % interval lies
    within the margin.
    """
    inside = margin - abs(mean)
    if not error:
        return float(inside < 0)
    tail = t_probability(inside / error, freedom) / 2
    return tail if inside >= 0 else 1 - tail


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided probability of the signed-rank sum of differences [S], exact (Wilcoxon, 1945).

    Differences of 0 are left out, equal sizes take the average rank. With S = 5 it cannot be below .0625.
    """
    given = [d for d in differences if d]
    sizes = sorted(map(abs, given))
    doubled = {s: 2 * sizes.index(s) + sizes.count(s) + 1 for s in sizes}  # twice the average rank is whole
    ways = [1]  # ways[w]: choices of signs in which twice the positive ranks sum to w
    for size in sizes:
        shifted = [0] * doubled[size] + ways
        ways = [a + b for a, b in zip(ways + [0] * doubled[size], shifted, strict=True)]
    found = sum(doubled[d] for d in given if d > 0)
    tail = min(sum(ways[: found + 1]), sum(ways[found:]))
    return min(1.0, 2 * tail / sum(ways))


def holm_factors(p: Sequence[float]) -> tuple[int, ...]:
    """By how much each p [M] is multiplied: M for the smallest, one less for each next (Holm, 1979)."""
    order = sorted(range(len(p)), key=p.__getitem__)
    return tuple(len(p) - order.index(n) for n in range(len(p)))


def holm(p: Sequence[float]) -> tuple[float, ...]:
    """Step-down adjusted p [M]: claim all that are below .05, and at most 5 % of such families claim falsely.

    The i-th smallest is max over j <= i of (M - j + 1) p_(j), at most 1 (Holm, 1979).
    """
    multiplied = [min(1.0, f * q) for f, q in zip(holm_factors(p), p, strict=True)]
    return tuple(max(m for m, other in zip(multiplied, p, strict=True) if other <= own) for own in p)


def seeds_needed(mean: float, sd: float, margin: float, *, level: float = LEVEL, most: int = 1000) -> int | None:
    """The smallest number of seeds that would settle the verdict were ``mean`` and ``sd`` as seen; None above ``most``.

    Settled is a difference at ``level``, or equivalence within ``margin`` at 5 %. Both tests gain with every seed.
    """

    def settled(seeds: int) -> bool:
        error, freedom = sd / sqrt(seeds), seeds - 1
        return equivalence(mean, error, freedom, margin) <= LEVEL or _two_sided(mean, error, freedom) < level

    return _first(settled, 2, most)


def _first(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number of low..high from which ``holds`` is true, by bisection; None if it is never."""
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _two_sided(mean: float, error: float, freedom: int) -> float:
    return t_probability(mean / error, freedom) if error else float(mean == 0)


def t_probability(t: float, freedom: int) -> float:
    """Two-sided probability of a Student t at least as far from 0 as ``t``."""
    return float(betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))


@cache
def t_quantile(q: float, freedom: int) -> float:
    """The ``q`` quantile (q > 0.5) of Student's t, by bisection to 12 digits."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) > 2 * (1 - q):
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) > 2 * (1 - q) else (low, middle)
    return high
