"""Which tasks should share a model: groups by their affinities (Fifty et al., NeurIPS 2021).

For every set of tasks the score of task j in it is the mean of Z[i → j] over its other tasks i, so the
affinity of a task to itself plays no part, as in the paper. The paper never trains a task alone; here it may be,
at a score of 0: nobody helps it and nobody hurts it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polytask.errors import ConfigError

MOST_TASKS = 16  # the work grows as 3^T


@dataclass(frozen=True)
class Grouping:
    """Sets of tasks to be trained together, each a model; a task may be in several and is served by one.

    ``groups`` holds the numbers of their tasks; ``serving`` [T] the number of the group that serves each task.
    ``value`` is the sum of the tasks' scores in the groups that serve them; ``together`` and ``alone`` are what it
    would be with one model for all tasks, and with one for each.
    """

    groups: tuple[tuple[int, ...], ...]
    serving: tuple[int, ...]
    value: float
    together: float
    alone: float


def group_tasks(affinity: Sequence[Sequence[float]], most: int, *, alone: float | None = 0.0) -> Grouping:
    """The grouping of highest value with ``most`` models or fewer, by ``affinity`` [T][T]: Z[i][j] of i onto j.

    Of equal values the one with fewer models. ``alone`` is the score of a task trained alone, None forbids it.
    Exact: what a group serves are disjoint sets of tasks, so the best one follows from the best groupings of
    smaller sets. More than 16 tasks, a number that is not finite or no possible grouping is a :class:`ConfigError`.
    """
    z = np.asarray(affinity, dtype=float)
    tasks = _checked(z, most)
    lonely = -np.inf if alone is None else alone
    best, group = _servers(z, lonely)
    value, chosen = _covers(best, min(most, tasks))
    if value == -np.inf:
        raise ConfigError("grouping: a single task cannot be grouped with alone = None; leave it out")
    models = sorted((_members(group[served]), _members(served)) for served in chosen)
    merged = list(dict.fromkeys(members for members, _ in models))
    place = {task: merged.index(members) for members, served in models for task in served}
    everything = (1 << tasks) - 1
    together = float(_scores(z, everything, lonely).sum())
    return Grouping(tuple(merged), tuple(place[t] for t in range(tasks)), value, together, tasks * lonely)


def _checked(z: np.ndarray, most: int) -> int:
    if z.ndim != 2 or z.shape[0] != z.shape[1] or not len(z):
        raise ConfigError(f"grouping: affinities of shape {list(z.shape)}; give one row and one column per task")
    if len(z) > MOST_TASKS or most < 1:
        raise ConfigError(f"grouping: {len(z)} tasks in {most} groups; at most {MOST_TASKS} tasks, at least one group")
    if not np.isfinite(z[~np.eye(len(z), dtype=bool)]).all():
        raise ConfigError("grouping: an affinity between two tasks is not finite; measure it again")
    return len(z)


def _members(tasks: int) -> tuple[int, ...]:
    """The numbers of the tasks in a set given as bits."""
    return tuple(t for t in range(tasks.bit_length()) if tasks >> t & 1)


def _scores(z: np.ndarray, group: int, lonely: float) -> np.ndarray:
    """The score of each task of a group, in the order of their numbers."""
    members = list(_members(group))
    if len(members) == 1:
        return np.array([lonely])
    within = z[np.ix_(members, members)]
    np.fill_diagonal(within, 0.0)
    scores: np.ndarray = within.sum(axis=0) / (len(members) - 1)
    return scores


def _subsets(members: Sequence[int], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Every subset as bits, the empty one first, and the sum of its scores."""
    sets, sums = np.zeros(1, dtype=np.int64), np.zeros(1)
    for task, score in zip(members, scores, strict=True):
        sets, sums = np.concatenate([sets, sets | 1 << task]), np.concatenate([sums, sums + score])
    return sets, sums


def _servers(z: np.ndarray, lonely: float) -> tuple[np.ndarray, list[int]]:
    """For every set of tasks the highest sum of scores in one group that contains it, and that group."""
    total = 1 << len(z)
    best, group = np.full(total, -np.inf), np.zeros(total, dtype=np.int64)
    for candidate in range(1, total):
        sets, sums = _subsets(_members(candidate), _scores(z, candidate, lonely).tolist())
        better = sums > best[sets]
        best[sets[better]], group[sets[better]] = sums[better], candidate
    return best, group.tolist()


def _covers(best: np.ndarray, most: int) -> tuple[float, list[int]]:
    """The highest value of ``most`` disjoint sets or fewer that cover all tasks, and these sets."""
    whole = len(best) - 1
    values = np.full((most + 1, len(best)), -np.inf)
    values[:, 0] = 0.0
    taken = np.zeros((most + 1, len(best)), dtype=np.int64)
    for count in range(1, most + 1):
        for tasks in range(1, len(best)):
            first = tasks & -tasks  # the set with the lowest task; the rest is covered by one group less
            others = _members(tasks ^ first)
            sets = _subsets(others, [0.0] * len(others))[0] | first
            found = best[sets] + values[count - 1][tasks ^ sets]
            at = int(found.argmax())
            values[count, tasks], taken[count, tasks] = found[at], sets[at]
    count = int(values[:, whole].argmax())
    chosen, left = [], whole
    while left and values[count, whole] > -np.inf:
        chosen.append(int(taken[count, left]))
        left, count = left ^ chosen[-1], count - 1
    return float(values[:, whole].max()), chosen
