from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.errors import ConfigError
from polytask.pareto import dominates, fronts, hypervolume, non_dominated

Points = list[tuple[float, ...]]
grid = st.integers(0, 4).map(float)
some = st.integers(2, 4).flatmap(lambda t: st.lists(st.tuples(*[grid] * t), min_size=1, max_size=7))


def counted(points: Points) -> int:
    """Volume of whole-numbered boxes from 0, cell by cell."""
    cells = product(range(4), repeat=len(points[0]))
    return sum(any(all(c < v for c, v in zip(cell, p, strict=True)) for p in points) for cell in cells)


def test_the_published_example() -> None:
    points = [(0.70, 0.62), (0.72, 0.60), (0.68, 0.63)]
    assert hypervolume(points, (0.65, 0.55)) == pytest.approx(0.0048)
    assert non_dominated(points) == [0, 1, 2]


@given(points=some)
@settings(max_examples=60)
def test_the_volume_is_that_of_the_cells_covered(points: Points) -> None:
    assert hypervolume(points, [0.0] * len(points[0])) == counted(points)


@given(points=some)
@settings(max_examples=60)
def test_only_the_front_counts(points: Points) -> None:
    zero = [0.0] * len(points[0])
    front = [points[n] for n in non_dominated(points)]
    assert front and hypervolume(front, zero) == hypervolume(points, zero)
    assert not any(dominates(one, other) for one in front for other in front)
    assert all(any(dominates(f, p) or f == p for f in front) for p in points)


def test_eight_tasks_are_exact() -> None:
    points = np.random.default_rng(0).random((12, 8))
    inside = np.random.default_rng(1).random((100_000, 1, 8))
    share = float(np.mean([(block < points).all(axis=2).any(axis=1).mean() for block in np.split(inside, 20)]))
    assert hypervolume(points.tolist(), [0.0] * 8) == pytest.approx(share, abs=4 * (share / 100_000) ** 0.5)


def test_points_below_the_reference_cover_nothing() -> None:
    assert hypervolume([(1.0, -1.0), (-1.0, 1.0)], (0.0, 0.0)) == 0 == hypervolume([], (0.0, 0.0))
    assert hypervolume([(2.0, 0.5), (5.0, -1.0)], (1.0, 0.0)) == 0.5


METHODS = {
    "fixed": {"a": (0.70, 0.9), "b": (0.72, 1.0), "c": (0.69, 1.0)},
    "uncertainty": {"d": (0.71, 0.8)},
}


def test_methods_are_compared_by_fronts_from_the_worst_value_seen() -> None:
    fixed, other = fronts(METHODS, ("higher", "lower"))
    assert (fixed.method, fixed.settings, fixed.reference) == ("fixed", ("a", "b"), (0.69, 1.0))
    assert fixed.hypervolume == pytest.approx(0.01 * 0.1)  # b has the worst error, so it covers nothing
    assert other.settings == ("d",) and other.hypervolume == pytest.approx(0.02 * 0.2)


def test_fronts_from_the_single_task_values() -> None:
    fixed, other = fronts(METHODS, ("higher", "lower"), (0.60, 1.1))
    assert fixed.hypervolume == pytest.approx(0.10 * 0.2 + 0.02 * 0.1) and other.hypervolume == pytest.approx(
        0.11 * 0.3
    )
    assert other.reference == (0.60, 1.1)


def test_a_metric_without_a_better_side_has_no_front() -> None:
    with pytest.raises(ConfigError, match="right near 1 has no better side"):
        fronts(METHODS, ("higher", "near 1"))
