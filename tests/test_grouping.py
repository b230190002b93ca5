from itertools import combinations

import numpy as np
import pytest

from polytask.errors import ConfigError
from polytask.grouping import Grouping, group_tasks

# Z[i][j]: what a step of task i does to the loss of task j. 0 and 1 help each other, 2 hurts both and is helped by 0.
THREE = [[0.9, 0.4, 0.2], [0.3, 0.9, -0.1], [-0.5, -0.2, 0.9]]


def score(z: np.ndarray, group: tuple[int, ...], task: int, alone: float) -> float:
    others = [i for i in group if i != task]
    return float(np.mean([z[i, task] for i in others])) if others else alone


def exhaustive(z: np.ndarray, most: int, alone: float) -> float:
    """The best value over every choice of groups, each task served by the best of those it is in."""
    tasks = range(len(z))
    groups = [g for size in range(1, len(z) + 1) for g in combinations(tasks, size)]
    scores = np.array([[score(z, g, t, alone) if t in g else -np.inf for t in tasks] for g in groups])
    best, covers = scores.sum(axis=1).max(), scores
    for count in range(2, most + 1):
        best = max(best, *(np.maximum(covers, own).sum(axis=1).max() for own in scores))
        if count < most:
            covers = np.concatenate([np.maximum(covers, own) for own in scores])
    return float(best)


def value(z: np.ndarray, found: Grouping, alone: float) -> float:
    return sum(score(z, found.groups[g], t, alone) for t, g in enumerate(found.serving))


def test_a_small_case_by_hand() -> None:
    # two models: {0, 1} serves 0 at 0.3 and 1 at 0.4; {0, 2} serves 2 at 0.2
    found = group_tasks(THREE, 2)
    assert found.groups == ((0, 1), (0, 2)) and found.serving == (0, 0, 1)
    assert found.value == pytest.approx(0.9)
    # one model: task 0 has the mean of 0.3 and -0.5, task 1 of 0.4 and -0.2, task 2 of 0.2 and -0.1
    assert found.together == pytest.approx(-0.1 + 0.1 + 0.05) and found.alone == 0.0
    assert group_tasks(THREE, 1).value == pytest.approx(0.05)


def test_tasks_that_hurt_each_other_are_trained_alone_unless_that_is_forbidden() -> None:
    hostile = -np.ones((3, 3))
    assert group_tasks(hostile, 3).groups == ((0,), (1,), (2,))
    assert group_tasks(hostile, 3).value == 0.0
    forbidden = group_tasks(hostile, 3, alone=None)
    assert forbidden.groups == ((0, 1, 2),) and forbidden.value == -3.0


def test_of_equal_values_the_one_with_fewer_models() -> None:
    assert group_tasks(np.ones((4, 4)), 4).groups == ((0, 1, 2, 3),)


def test_the_affinity_of_a_task_to_itself_plays_no_part() -> None:
    other = np.array(THREE)
    np.fill_diagonal(other, np.nan)
    assert group_tasks(other, 2) == group_tasks(THREE, 2)


@pytest.mark.parametrize(("tasks", "most"), [(1, 1), (4, 2), (4, 4), (5, 3), (8, 2), (8, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_the_value_is_that_of_an_exhaustive_search(tasks: int, most: int, seed: int) -> None:
    z = np.random.default_rng(seed).normal(size=(tasks, tasks)) - 0.3 * seed
    found = group_tasks(z, most)
    assert found.value == pytest.approx(exhaustive(z, most, 0.0))
    assert value(z, found, 0.0) == pytest.approx(found.value)
    assert len(found.groups) <= most and all(t in found.groups[g] for t, g in enumerate(found.serving))


def test_renaming_the_tasks_renames_the_groups() -> None:
    z, order = np.random.default_rng(4).normal(size=(6, 6)), [3, 0, 5, 1, 4, 2]
    first, second = group_tasks(z, 3), group_tasks(z[np.ix_(order, order)], 3)
    assert {tuple(sorted(order[t] for t in g)) for g in second.groups} == set(first.groups)


def test_twelve_tasks_that_fall_into_three_families_are_found() -> None:
    family = np.arange(12) % 3
    z = np.where(family[:, None] == family, 0.5, -0.5)
    found = group_tasks(z, 3)
    assert found.groups == tuple(tuple(range(k, 12, 3)) for k in range(3)) and found.value == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("z", "most", "alone", "named"),
    [
        ([[1.0, 2.0]], 1, 0.0, "shape"),
        (np.zeros((17, 17)), 2, 0.0, "17 tasks"),
        (np.zeros((2, 2)), 0, 0.0, "0 groups"),
        ([[0.0, np.nan], [0.0, 0.0]], 1, 0.0, "not finite"),
        ([[0.0]], 1, None, "alone"),
    ],
)
def test_what_cannot_be_grouped_is_named(z: list[list[float]], most: int, alone: float | None, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        group_tasks(z, most, alone=alone)
