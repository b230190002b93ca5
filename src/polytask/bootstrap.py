"""How far a difference between two models hangs on the test rows: users resampled, and the exact test for two AUCs.

This is the uncertainty of one test set. That of start, order of rows and split is the interval over seeds
(:mod:`polytask.transfer`); neither contains the other, so both are reported.
"""

from collections.abc import Callable, Sequence
from math import inf, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polytask import rng
from polytask.errors import ConfigError, StateError
from polytask.metrics import Grouped, Metric, Ranks, Rows, metric
from polytask.metrics.probabilities import auc
from polytask.predictions import TEST_FILE, Predictions
from polytask.run import Run
from polytask.significance import LEVEL, Estimate

REPLICATIONS = 2000
_HELD = 1 << 17  # numbers held at once: what stays in a core's own cache
Statistic = Callable[[Tensor], Tensor]


def resampled(first: Sequence[Run], second: Sequence[Run], task: str) -> dict[int, Estimate]:
    """By seed, what ``task`` gains from the ``second`` runs to the ``first``, by :func:`user_bootstrap`.

    The runs must keep their test predictions, which are those at the kept epoch.
    """
    others = {r.config.seed: r for r in second}
    pairs = {r.config.seed: (r, others[r.config.seed]) for r in first if r.config.seed in others}
    return {s: user_bootstrap(kept_predictions(a), kept_predictions(b), task) for s, (a, b) in pairs.items()}


def keeps_predictions(run: Run) -> bool:
    """Whether the folder of ``run`` holds its test predictions."""
    return run.folder is not None and (run.folder / TEST_FILE).exists()


def kept_predictions(run: Run) -> Predictions:
    """What ``run`` says of its test part; a :class:`StateError` where its folder does not keep it."""
    if run.folder is None:
        raise StateError(f"run '{run.name}' has no folder, so its test predictions were not kept")
    return Predictions.load(run.folder / TEST_FILE, run.schema)


def user_bootstrap(
    first: Predictions,
    second: Predictions,
    task: str,
    name: str | None = None,
    *,
    replications: int = REPLICATIONS,
    seed: int = 0,
) -> Estimate:
    """What ``first`` gains over ``second`` on the same test rows, with the 95 % interval under resampled users.

    Users are drawn with replacement, with all of their rows, the same for both models (Efron, 1979); the interval is
    that of percentiles. A row of an unknown user is a user of its own. ``name`` is the metric, the task's first by
    default; a gain is signed so that above 0 is better. Other rows or users in the two: :class:`ConfigError`.
    """
    chosen = metric(name or first.schema.task(task).metrics[0])
    if chosen.needs == "lists" or chosen.better == "near 1":
        raise ConfigError(f"metric '{chosen.name}' of task '{task}' cannot be resampled by user; name another")
    one, other = (_resampling(told, task, chosen) for told in (first, second))
    if not torch.equal(one.rows, other.rows):
        raise ConfigError(f"task '{task}': the two were tested on different rows; compare runs of one seed")
    users, sign = int(one.unit.max()) + 1, 1 if chosen.better == "higher" else -1
    draw, block = rng.generator(seed, "bootstrap"), max(1, _HELD // max(users, len(one.unit)))
    found = []
    for start in range(0, replications, block):
        counts = _drawn(users, min(block, replications - start), draw)
        found.append(sign * (one.value(counts) - other.value(counts)))
    gains = torch.cat(found)
    low, high = gains[~gains.isnan()].quantile(torch.tensor([LEVEL / 2, 1 - LEVEL / 2], dtype=torch.float64)).tolist()
    once = torch.ones(1, users, dtype=torch.float64)
    return Estimate(sign * float(one.value(once) - other.value(once)), low, high)


def _drawn(users: int, size: int, draw: np.random.Generator) -> Tensor:
    """How often each user is drawn in ``size`` replications: counts [size, U]."""
    drawn = (np.bincount(draw.integers(users, size=users), minlength=users) for _ in range(size))
    return torch.from_numpy(np.stack(list(drawn)).astype(np.float64))


class _Resampling(NamedTuple):
    """A metric as a function of how often every user is there: ``value`` maps counts [R, U] to [R].

    ``unit`` [N] is the user of every row by number, ``rows`` tells rows of one data set from those of another.
    """

    value: Statistic
    unit: Tensor
    rows: Tensor


def _resampling(told: Predictions, task: str, chosen: Metric) -> _Resampling:
    if chosen.needs == "ranks":
        ranks, users = told.ranks[task]
        unit = torch.unique(users, return_inverse=True)[1]
        values = chosen.function(Ranks(ranks, unit), chosen.k)
        assert isinstance(values, Tensor)
        return _Resampling(_ratio(values, torch.ones_like(values)), unit, users)
    prediction, label = told.compared(task, chosen)
    weight = told.weights.get(task, torch.ones(len(label))).double()
    by = told.by[task].double() if "by" in chosen.reads else torch.zeros(len(label)).double()
    known = ~label.isnan() & (weight > 0) & ~by.isnan()
    if "group" in chosen.reads:
        known &= told.user > 0
    user, label = told.user[known], label[known].double()
    bounds = told.schema.task(task).range if "range" in chosen.reads else None
    rows = Rows(prediction[known], label, weight[known], _units(user), by[known], bounds or (-inf, inf))
    return _Resampling(_statistic(rows, chosen), rows.group, torch.stack([user.double(), label]))


def _statistic(rows: Rows, chosen: Metric) -> Statistic:
    """A mean over rows or users is a ratio of sums over users; an AUC counts weighted pairs; any other is made anew."""
    if chosen.function is auc:
        return _auc(rows)
    values = chosen.function(rows, chosen.k)
    if isinstance(values, Grouped) and "group" in chosen.reads:
        weight = torch.where(values.values.isnan(), 0.0, values.weight)
        return _ratio(values.values.nan_to_num(0.0) * weight, weight)
    if isinstance(values, Tensor) and values.dim():
        return _ratio(*(torch.bincount(rows.group, weights=w) for w in (values * rows.weight, rows.weight)))
    return _anew(rows, chosen)


def _units(user: Tensor) -> Tensor:
    """The number [N] of the user of every row, from 0 without a gap; every unknown user is one of its own."""
    own = user == 0
    apart = torch.where(own, -torch.arange(1, len(user) + 1), user)
    unit: Tensor = torch.unique(apart, return_inverse=True)[1]
    return unit


def _ratio(above: Tensor, below: Tensor) -> Statistic:
    """Sum of ``above`` [U] over sum of ``below`` [U] of the users drawn."""

    def value(counts: Tensor) -> Tensor:
        return counts.mv(above) / counts.mv(below)

    return value


def _auc(rows: Rows) -> Statistic:
    """AUC of the rows of the users drawn: the weight of negatives below each positive, ties one half, from a sum."""
    order = rows.prediction.argsort()
    unit, prediction, weight, positive = (t[order] for t in (rows.group, rows.prediction, rows.weight, rows.label == 1))
    up, down = positive.nonzero()[:, 0], (~positive).nonzero()[:, 0]
    low, high = (torch.searchsorted(prediction[down], prediction[up], right=right) for right in (False, True))

    def value(counts: Tensor) -> Tensor:
        negatives = torch.nn.functional.pad((counts[:, unit[down]] * weight[down]).cumsum(dim=1), (1, 0))
        positives = counts[:, unit[up]] * weight[up]
        below = (negatives[:, low] + negatives[:, high]) / 2
        found: Tensor = (positives * below).sum(dim=1) / (positives.sum(dim=1) * negatives[:, -1])
        return found

    return value


def _anew(rows: Rows, chosen: Metric) -> Statistic:
    """The metric computed for each replication by itself, rows weighted by how often their user is drawn."""

    def one(counts: Tensor) -> float:
        weight = rows.weight * counts[rows.group]
        score = chosen(rows.prediction, rows.label, weight=weight, by=rows.by, range=rows.range)
        return torch.nan if score.value is None else score.value

    return lambda counts: torch.tensor([one(c) for c in counts], dtype=torch.float64)


def delong(first: Tensor, second: Tensor, label: Tensor) -> Estimate:
    """AUC of predictions ``first`` [N] minus that of ``second`` [N] on the same labels 0/1 [N] (DeLong et al., 1988).

    The variance is that of the share of negatives each positive is above, over the number of positives, and the
    same for the negatives. Rows count as independent: with several rows per user it is too sure.
    """
    positive = label == 1
    if min(int(positive.sum()), int((~positive).sum())) < 2:
        raise ConfigError("delong needs two rows of each class")
    above, below = (a - b for a, b in zip(_placements(first, positive), _placements(second, positive), strict=True))
    difference = float(above.mean())
    error = sqrt(float(above.var() / len(above) + below.var() / len(below)))
    if not error:
        return Estimate(difference, difference, difference, float(difference == 0))
    half = error * NormalDist().inv_cdf(1 - LEVEL / 2)
    p = 2 * NormalDist().cdf(-abs(difference) / error)
    return Estimate(difference, difference - half, difference + half, p)


def _placements(prediction: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """For every positive the share of negatives below it, for every negative that of positives above; ties one half."""
    up, down = prediction.double()[positive], prediction.double()[~positive]
    return _below(up, down), 1 - _below(down, up)


def _below(values: Tensor, others: Tensor) -> Tensor:
    """The share of ``others`` [M] below each of ``values`` [N], ties one half: [N]."""
    ordered = others.sort().values
    low, high = (torch.searchsorted(ordered, values, right=right).double() for right in (False, True))
    return (low + high) / (2 * len(others))
