"""Weights of a mix from validation data: what each task gets where lists are ordered by one fused score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from math import comb

import numpy as np
import torch
from torch import Tensor

from polytask import rng
from polytask.calibration import Calibration
from polytask.data.batch import Part
from polytask.errors import DataError
from polytask.evaluate import catalogue_values, left_out, predict, predictions
from polytask.metrics import average_ranks, metric
from polytask.nn.models import Model
from polytask.pareto import non_dominated
from polytask.recommend.expression import LONGEST, quoted
from polytask.recommend.mix import Mix
from polytask.schema import Schema, Task

_POINTS = 70  # mixes tried at most, unless there are more tasks
_CELLS = 1 << 25  # users times items that lists are made of
_LOWEST = np.finfo(np.float64).min  # ranks below every score, in a metric that wants finite ones

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Point:
    """A mix with what each task gets from its order; ``front``: no other is as good everywhere and better somewhere."""

    mix: str
    scores: dict[str, float]
    front: bool
    chosen: bool


def objective(task: Task, schema: Schema) -> str:
    """The metric that says how good an order is for ``task``; higher is better.

    A ranking's is its own first one that reads ranks. That of a binary task is the AUC within users (over all rows
    where there is no user column; of a conditional task whether it and its conditions held), that of a regression the
    share of pairs in the order of their labels.
    """
    if task.kind == "regression":
        return "xauc"
    if task.kind == "binary":
        return ("entire_" if task.given else "") + ("gauc" if schema.user else "auc")
    return next((m for m in task.metrics if metric(m).needs == "ranks"), "ndcg@10")


def search(
    model: Model,
    part: Part,
    calibration: Mapping[str, Calibration] | None = None,
    *,
    tasks: Sequence[str] | None = None,
    users: int = 1000,
    seed: int = 0,
) -> list[Point]:
    """Score mixes of ``tasks`` (all by default) on ``part``, the validation part, and choose one.

    Tried are the shares of a simplex lattice, single tasks and equal shares among them: 11 mixes of two tasks, 67 of
    three. A share w of a task x counts in units of its spread s over the validation rows: x ** (w / s) in a product of
    powers, s the standard deviation of log x; or (w / s) * x in a weighted sum, s that of x, where some value is not
    above 0 and so has no power. The largest exponent or weight is made 1, which changes no order.

    Lists are those of ``users`` users at most (fewer where the catalogue is very large), drawn by ``seed``, over the
    whole catalogue without what they had before; binary and regression tasks are scored on those users' rows, by
    :func:`objective`. Chosen is the mix with the highest mean over tasks of (score - worst single) / (best single -
    worst single), of equal ones that of fewer tasks. A task on which all singles are equal does not count. One that
    cannot be scored is left out of ``scores``, a mix too long to be written out of the list. If no task can be
    scored, it is a :class:`DataError`.
    """
    names = model.schema.task_names if tasks is None else tuple(tasks)
    trial = _Trial(model, part, names, calibration or {}, _sample(part, users, seed))
    rows = trial.inputs(predict(model, part).T) if len(part) else {}
    mixes = [Mix.parse(text, names) for text in _texts(rows)]
    tables = [trial.list_scores(mixes), trial.row_scores(mixes, rows)]
    scored = [t for t in names if any(t in table for table in tables)]
    if not mixes or not scored:
        raise DataError(f"mix: {part.name} has no rows that can be scored, so no weights can be searched; name a mix")
    found = np.array([next(table[t] for table in tables if t in table) for t in scored]).T
    front = set(non_dominated(found.tolist()))
    best = _best(found, [len(m.tasks) for m in mixes])
    scores = [dict(zip(scored, row, strict=True)) for row in found.tolist()]
    return [Point(m.text, scores[n], n in front, n == best) for n, m in enumerate(mixes)]


def _best(scores: np.ndarray, sizes: Sequence[int]) -> int:
    """The place of the chosen one among mixes with scores [M, T] and ``sizes`` [M], the number of their tasks."""
    singles = scores[np.array(sizes) == 1]
    low, high = singles.min(axis=0), singles.max(axis=0)
    counts = high > low
    gain = ((scores - low)[:, counts] / (high - low)[counts]).sum(axis=1)
    return min(range(len(scores)), key=lambda n: (-round(gain[n], 12), sizes[n], n))


def _sample(part: Part, users: int, seed: int) -> Tensor:
    """Users [<= users] that have rows in ``part``, ascending."""
    every: Tensor = torch.unique(part.user[part.user > 0])
    count = min(users, max(1, _CELLS // max(1, len(part.popularity))), len(every))
    drawn = rng.generator(seed, "mix users").permutation(len(every))[:count]
    return every[torch.from_numpy(np.sort(drawn))]


def _lattice(tasks: int) -> list[tuple[float, ...]]:
    """Shares of ``tasks`` tasks that sum to 1: a simplex lattice (Scheffe, 1958) of about 60, and equal shares."""
    steps = max((m for m in range(1, 11) if comb(m + tasks - 1, tasks - 1) <= _POINTS), default=1)
    found = []
    for bars in combinations(range(steps + tasks - 1), tasks - 1):
        ends = (-1, *bars, steps + tasks - 1)
        found.append(tuple((b - a - 1) / steps for a, b in pairwise(ends)))
    return list(dict.fromkeys([*reversed(found), (1 / tasks,) * tasks]))


def _texts(rows: Inputs) -> list[str]:
    """The mixes to be tried, given what the names of their tasks stand for on the validation rows."""
    powers = all(bool((x > 0).all()) for x in rows.values())
    spread = {t: float(np.std(np.log(x) if powers else x)) or 1.0 for t, x in rows.items()}
    found = []
    for shares in _lattice(len(rows)) if rows else []:
        weights = {t: w / s for w, (t, s) in zip(shares, spread.items(), strict=True)}
        found.append(_text(weights, powers))
    return [text for text in dict.fromkeys(found) if len(text) <= LONGEST]


def _text(weights: Mapping[str, float], powers: bool) -> str:
    """The product of powers with these exponents, or the weighted sum, the largest made 1."""
    found, most = [], max(weights.values())
    for task, weight in weights.items():
        number = f"{weight / most:.3g}"
        term = f"{quoted(task)} ** {number}" if powers else f"{number} * {quoted(task)}"
        found += [quoted(task) if number == "1" else term] if weight else []
    return (" * " if powers else " + ").join(found)


@dataclass(frozen=True, eq=False)
class _Trial:
    """What mixes of ``tasks`` are scored on: of ``users`` [U] the validation rows and the catalogue."""

    model: Model
    part: Part
    tasks: Sequence[str]
    calibration: Mapping[str, Calibration]
    users: Tensor

    def inputs(self, values: Tensor) -> Inputs:
        """What the names stand for, given what every task of the model predicts [T, ...]."""
        schema, found = self.model.schema, []
        for task in self.tasks:
            value = values[schema.task_names.index(task)].double()
            found.append(self.calibration[task].apply(value) if task in self.calibration else value)
        return Mix.inputs(torch.stack(found).numpy(), self.tasks, schema)

    def list_scores(self, mixes: Sequence[Mix]) -> dict[str, list[float]]:
        """For each ranking task that has a score, that of every mix."""
        ranking = [t for t in self.tasks if t in self.part.heldout]
        ranks: dict[str, list[list[Tensor]]] = {t: [[] for _ in mixes] for t in ranking}
        users: dict[str, list[Tensor]] = {t: [] for t in ranking}
        for first, values in catalogue_values(self.model, self.part, self.users) if ranking else ():
            block = self.users[first : first + values.shape[1]]
            grid, excluded = self.inputs(values), left_out(self.part, block)
            targets = {t: self._targets(t, block) for t in ranking}
            for task, (_, rows) in targets.items():
                users[task].append(block[rows])
            for n, mix in enumerate(mixes):
                fused = _finite(mix(grid))
                for task, (items, rows) in targets.items():
                    ranks[task][n].append(average_ranks(fused, items, rows, excluded))
        found = {}
        for name in (t for t in ranking if any(len(u) for u in users[t])):
            chosen = metric(objective(self.model.schema.task(name), self.model.schema))
            found[name] = [float(chosen(torch.cat(r), torch.cat(users[name]))) for r in ranks[name]]
        return found

    def _targets(self, task: str, block: Tensor) -> tuple[Tensor, Tensor]:
        """The held-out items [M] of the users of a block, ascending, and the place of their user in it [M]."""
        heldout = self.part.heldout[task]
        user = heldout.users[heldout.rows]
        inside = torch.isin(user, block)
        return heldout.items[inside], torch.searchsorted(block, user[inside])

    def row_scores(self, mixes: Sequence[Mix], rows: Inputs) -> dict[str, list[float]]:
        """For each other task that has a score, that of every mix, given what the names stand for on the rows."""
        schema = self.model.schema
        scored = [t for t in self.tasks if schema.task(t).kind != "ranking"]
        if not scored or not rows:
            return {}
        told = predictions(self.model, self.part, tasks=scored)
        times = None if schema.user is None else torch.isin(self.part.user, self.users).double()
        whole = dict.fromkeys(told.values, torch.ones(len(self.part)))  # conditions are judged, not predicted
        found: dict[str, list[float]] = {t: [] for t in scored}
        for mix in mixes:
            fused = _finite(mix(rows))
            for task in scored:
                judged = replace(told, values={**whole, task: fused})
                value = judged.score(task, objective(schema.task(task), schema), times).value
                found[task] += [] if value is None else [value]
        return {t: values for t, values in found.items() if values}


def _finite(fused: np.ndarray) -> Tensor:
    return torch.from_numpy(np.maximum(fused, _LOWEST))
