"""Metrics, each with its direction, its tie rule and its denominator, and the ranking they are read from.

Two families. ``values`` metrics compare predictions [N] with labels [N]; a NaN label is a missing one.
``ranks`` metrics read the rank of every held-out item among its user's candidates (:func:`average_ranks`)
and average over the users who have held-out items. Ties take the average rank, so a scorer that says the
same of every item scores as chance does. Everything is added up in float64.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from polytask.errors import ConfigError, PolytaskError, TrainingError, did_you_mean
from polytask.schema import Task

Better = Literal["higher", "lower"]

CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 in ``logloss``."""

_SORT_FROM = 4  # targets per row from which sorting a row once beats comparing it with every target
_CACHED = 1 << 20  # bytes compared at a time: what stays in a core's own cache


@dataclass(frozen=True, slots=True)
class Score:
    """What a metric came to: ``value`` over ``used`` rows or users; ``skipped`` rows had no label.

    A metric that could not be computed has ``value`` None and says ``why``.
    """

    value: float | None
    better: Better
    used: int
    skipped: int = 0
    why: str = ""

    @property
    def sign(self) -> int:
        """+1 if higher is better, -1 if lower is: ``sign * value`` always improves upward."""
        return 1 if self.better == "higher" else -1

    def __float__(self) -> float:
        if self.value is None:
            raise PolytaskError(f"the metric has no value: {self.why}")
        return self.value


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric by name: ``needs`` says what it is called with, ``better`` which way is up.

    ``function`` is the bare formula; its mean is the value. ``cutoff``: it takes ``k``, as in ``ndcg@10``.
    ``undefined`` says when the formula has no value. ``binary``: its labels are 0 or 1.
    """

    name: str
    better: Better
    needs: Literal["values", "ranks"]
    function: Callable[[Tensor, Tensor, int], Tensor]
    cutoff: bool = False
    undefined: str = ""
    binary: bool = False
    k: int = 0

    def __call__(self, first: Tensor, second: Tensor) -> Score:
        """Compute from (prediction [N], label [N]), or from (ranks [N] >= 1, users [N] int64, in any order).

        Tensors of two shapes, labels or probabilities out of range: ValueError. A prediction or rank that is
        not finite: :class:`TrainingError`.
        """
        if self.cutoff and self.k < 1:
            raise ConfigError(f"metric '{self.name}' needs a cut-off; write {self.name}@10")
        if first.shape != second.shape or first.dim() != 1:
            names = "prediction and label" if self.needs == "values" else "ranks and users"
            raise ValueError(f"{self.name}: {names} must be [N], not {[*first.shape]} and {[*second.shape]}")
        first, second = first.detach().double(), second.detach()
        if bad := int((~torch.isfinite(first)).sum()):
            what = "predictions" if self.needs == "values" else "ranks"
            raise TrainingError(f"{self.name}: {bad} of {len(first)} {what} are not finite")
        return self._values(first, second.double()) if self.needs == "values" else self._ranks(first, second)

    def _values(self, prediction: Tensor, label: Tensor) -> Score:
        known = ~label.isnan()
        used = int(known.sum())
        return self._score(prediction[known], label[known], used, len(label) - used, "no row has a label")

    def _ranks(self, ranks: Tensor, users: Tensor) -> Score:
        if bool((ranks < 1).any()):
            raise ValueError(f"{self.name}: ranks start at 1, found {float(ranks.min())}")
        distinct, group = torch.unique(users, return_inverse=True)
        return self._score(ranks, group, len(distinct), 0, "no user has a held-out item")

    def _score(self, first: Tensor, second: Tensor, used: int, skipped: int, empty: str) -> Score:
        value = float(self.function(first, second, self.k).mean()) if used else float("nan")
        if value != value:
            return Score(None, self.better, used, skipped, self.undefined if used else empty)
        return Score(value, self.better, used, skipped)


def _squared_error(prediction: Tensor, label: Tensor, _: int) -> Tensor:
    return (prediction - label).square()


def _root(prediction: Tensor, label: Tensor, _: int) -> Tensor:
    return _squared_error(prediction, label, _).mean().sqrt()


def _absolute_error(prediction: Tensor, label: Tensor, _: int) -> Tensor:
    return (prediction - label).abs()


def _auc(prediction: Tensor, label: Tensor, _: int) -> Tensor:
    """The share of (positive, negative) pairs in the right order, ties one half (Mann-Whitney)."""
    _check_binary("auc", label)
    positive, negative = prediction[label == 1], prediction[label == 0].sort().values
    below = torch.searchsorted(negative, positive)
    twice = below + torch.searchsorted(negative, positive, right=True)
    return twice.sum().double() / (2 * len(positive) * len(negative))


def _logloss(prediction: Tensor, label: Tensor, _: int) -> Tensor:
    _check_binary("logloss", label)
    if bool(((prediction < 0) | (prediction > 1)).any()):
        raise ValueError("logloss: predictions must be probabilities in 0..1, not logits")
    p = prediction.clamp(CLIP, 1 - CLIP)
    return -torch.where(label == 1, p, 1 - p).log()


def _check_binary(name: str, label: Tensor) -> None:
    if bool(((label != 0) & (label != 1)).any()):
        raise ValueError(f"{name}: labels must be 0 or 1")


def _per_user(values: Tensor, group: Tensor) -> Tensor:
    """Sum values [N] within each user: [V] float64."""
    return torch.bincount(group, weights=values.double())


def _mrr(ranks: Tensor, group: Tensor, _: int) -> Tensor:
    """Per user the mean of 1/rank over all held-out items, not the first hit's: 0.550926 in the example below."""
    return _per_user(1 / ranks, group) / torch.bincount(group)


def _mrr_first(ranks: Tensor, group: Tensor, _: int) -> Tensor:
    first = ranks.new_full((int(group.max()) + 1,), torch.inf)
    return 1 / first.scatter_reduce(0, group, ranks, "amin")


def _hits(ranks: Tensor, group: Tensor, k: int) -> Tensor:
    # more than k items can share an average rank <= k, but a list of k holds no more than k of them
    return _per_user(ranks <= k, group).clamp(max=k)


def _hit(ranks: Tensor, group: Tensor, k: int) -> Tensor:
    return _hits(ranks, group, k).clamp(max=1)


def _recall(ranks: Tensor, group: Tensor, k: int) -> Tensor:
    return _hits(ranks, group, k) / torch.bincount(group)


def _ndcg(ranks: Tensor, group: Tensor, k: int) -> Tensor:
    gain = torch.where(ranks <= k, 1 / torch.log2(1 + ranks), 0.0)
    held_out = torch.bincount(group).clamp(max=k)
    best = (1 / torch.log2(torch.arange(int(held_out.max()), dtype=torch.float64) + 2)).cumsum(dim=0)
    return (_per_user(gain, group) / best[held_out - 1]).clamp(max=1)


METRICS: dict[str, Metric] = {
    "mse": Metric("mse", "lower", "values", _squared_error),
    "rmse": Metric("rmse", "lower", "values", _root),
    "mae": Metric("mae", "lower", "values", _absolute_error),
    "auc": Metric("auc", "higher", "values", _auc, undefined="every label is of the same class", binary=True),
    "logloss": Metric("logloss", "lower", "values", _logloss, binary=True),
    "mrr": Metric("mrr", "higher", "ranks", _mrr),
    "mrr_first": Metric("mrr_first", "higher", "ranks", _mrr_first),
    "ndcg": Metric("ndcg", "higher", "ranks", _ndcg, cutoff=True),
    "recall": Metric("recall", "higher", "ranks", _recall, cutoff=True),
    "hit": Metric("hit", "higher", "ranks", _hit, cutoff=True),
}
"""Every metric by name.

``mse``, ``rmse``, ``mae``: over the labelled rows; rmse is the root of the pooled mse.
``auc``: probability that a positive is scored above a negative, ties one half. ``logloss``: of
probabilities, clipped at :data:`CLIP`.
``mrr``: per user the mean of 1/rank over *all* held-out items, then the mean over users with held-out
items. It is not the first-hit reciprocal rank, which is ``mrr_first`` (1 / the best rank). Example: held-out
{A,B} in the ranking B,C,D,A,G; {B} in A,B,C,G,D; {A,B,C} in A,D,B,C,G give
(1/2 (1/4 + 1) + 1/2 + 1/3 (1 + 1/3 + 1/4)) / 3 = 0.550926, and 0.833333 for ``mrr_first``.
``hit@k``: any held-out item in the first k; ``recall@k``: their share; ``ndcg@k``: with gains 0 and 1,
discount 1/log2(1 + rank) and the ideal list of min(k, held-out) items (Jarvelin & Kekalainen 2002).
"""


def metric(name: str) -> Metric:
    """Look up ``mse`` or ``ndcg@10``; a name or cut-off that does not fit is a :class:`ConfigError`."""
    base, at, cut = name.partition("@")
    if base not in METRICS:
        raise ConfigError(did_you_mean("metric", base, METRICS))
    found = METRICS[base]
    if at and not found.cutoff:
        raise ConfigError(f"metric '{name}': {base} takes no cut-off; write {base}")
    if not found.cutoff:
        return found
    if not re.fullmatch("[1-9][0-9]*", cut):
        raise ConfigError(f"metric '{name}': {base} needs a cut-off of 1 or more; write {base}@10")
    return replace(found, name=name, k=int(cut))


def check_metrics(task: Task) -> None:
    """Raise :class:`ConfigError` if a metric of ``task`` is unknown or not for its kind of task."""
    for name in task.metrics:
        if not _fits(metric(name), task):
            fitting = ", ".join(sorted(f"{n}@10" if m.cutoff else n for n, m in METRICS.items() if _fits(m, task)))
            raise ConfigError(f"task '{task.name}': metric '{name}' is not for {task.kind} tasks; they take: {fitting}")


def _fits(found: Metric, task: Task) -> bool:
    return (found.needs == "ranks") == (task.kind == "ranking") and (task.kind == "binary" or not found.binary)


def average_ranks(
    scores: Tensor, targets: Tensor, rows: Tensor, excluded: Tensor | None = None, budget: int = 1 << 26
) -> Tensor:
    """Rank items targets [N] among the candidates of their rows [N] in scores [U, I]: [N] float64, 1 is best.

    ``rank = 1 + #(scored higher) + 1/2 #(others scored the same)`` over the items of the row that are not in
    ``excluded`` [E, 2] (pairs of row and item). Temporary memory stays near ``budget`` bytes (one row at
    least). All tensors are on the CPU. An index out of range or a target that is excluded is a ValueError; a
    candidate's score that is not finite, in any row, a :class:`TrainingError` with the number of such rows.
    """
    _check_ranking(scores, targets, rows, excluded)
    scores, width = scores.detach(), scores.shape[1]
    keys = _sorted_keys(excluded, width)
    _check_not_excluded(rows * width + targets, keys)
    often = len(rows) > _SORT_FROM * len(scores)
    most = int(torch.bincount(rows).max()) if often else 0
    size = max(1, budget // (2 * (scores.element_size() * width + 40 * most + 1)))
    _check_finite(scores, keys, size)
    order = torch.argsort(rows, stable=True)
    bounds = torch.searchsorted(rows[order], torch.arange(0, len(scores) + size, size)).tolist()
    ranks = torch.empty(len(rows), dtype=torch.float64)
    for i, (start, block) in enumerate(_candidates(scores, keys, size, -torch.inf)):
        part = order[bounds[i] : bounds[i + 1]]
        local = rows[part] - start
        target = block[local, targets[part]]
        ranks[part] = _by_sorting(block, target, local) if often else _by_signs(block, target, local)
    return ranks


def _by_signs(block: Tensor, target: Tensor, local: Tensor) -> Tensor:
    """Ranks from comparing: #higher - #lower = S gives rank = (I + 1 + S) / 2, an excluded item being lower."""
    width = block.shape[1]
    ranks = torch.empty(len(local), dtype=torch.float64)
    step = max(1, _CACHED // (block.element_size() * width))
    for at in range(0, len(local), step):
        part = slice(at, at + step)
        # the difference of two unequal floats is never 0 (gradual underflow), so the sign is exact
        sign = block[local[part]].sub_(target[part, None]).sign_()
        ranks[part] = sign.sum(dim=1, dtype=torch.float64 if width > 1 << 24 else None)
    return (ranks + (width + 1)) / 2


def _by_sorting(block: Tensor, target: Tensor, local: Tensor) -> Tensor:
    """Ranks from sorting each row in place; ``local`` [n] ascends. Excluded items (-inf) sort to the front."""
    table, wanted = block.numpy(), target.numpy()
    table.sort(axis=1)
    twice = np.empty(len(wanted), dtype=np.int64)
    present, starts = np.unique(local.numpy(), return_index=True)
    for row, start, stop in zip(present, starts, [*starts[1:], len(wanted)], strict=True):
        line, value = table[row], wanted[start:stop]
        twice[start:stop] = line.searchsorted(value, "left") + line.searchsorted(value, "right")
    return block.shape[1] + 0.5 - torch.from_numpy(twice).double() / 2


def _candidates(scores: Tensor, keys: Tensor, size: int, fill: float) -> Iterator[tuple[int, Tensor]]:
    """Copies of ``size`` rows at a time, float32 at least, with ``fill`` at the excluded items."""
    width, wide = scores.shape[1], torch.promote_types(scores.dtype, torch.float32)
    for start in range(0, len(scores), size):
        block = scores[start : start + size].to(wide, copy=True, memory_format=torch.contiguous_format)
        ends = torch.tensor([start * width, (start + len(block)) * width])
        first, last = torch.searchsorted(keys, ends).tolist()
        block.view(-1)[keys[first:last] - start * width] = fill
        yield start, block


def _sorted_keys(excluded: Tensor | None, width: int) -> Tensor:
    """Pairs [E, 2] as row * width + item, ascending."""
    if excluded is None:
        return torch.empty(0, dtype=torch.int64)
    return torch.from_numpy(np.sort((excluded[:, 0] * width + excluded[:, 1]).numpy()))


def _check_ranking(scores: Tensor, targets: Tensor, rows: Tensor, excluded: Tensor | None) -> None:
    if scores.dim() != 2 or targets.dim() != 1 or targets.shape != rows.shape:
        shapes = f"{[*scores.shape]}, {[*targets.shape]} and {[*rows.shape]}"
        raise ValueError(f"average_ranks: scores, targets and rows must be [U, I], [N] and [N], not {shapes}")
    if excluded is not None and (excluded.dim() != 2 or excluded.shape[1] != 2):
        raise ValueError(f"average_ranks: excluded must be [E, 2], not {[*excluded.shape]}")
    pairs = torch.stack((rows, targets), dim=1)
    for name, given in (("targets", pairs), ("excluded", pairs[:0] if excluded is None else excluded)):
        if bool(((given < 0) | (given >= torch.tensor(scores.shape))).any()):
            raise ValueError(f"average_ranks: {name} point outside scores {[*scores.shape]}")


def _check_not_excluded(own: Tensor, keys: Tensor) -> None:
    found = torch.searchsorted(keys, own, right=True) - torch.searchsorted(keys, own)
    if twice := int((found > 0).sum()):
        raise ValueError(f"average_ranks: {twice} of {len(own)} targets are also excluded")


def _check_finite(scores: Tensor, keys: Tensor, size: int) -> None:
    if bool(torch.isfinite(scores.sum(dim=1)).all()):  # a sum is finite only if every term is
        return
    blocks = _candidates(scores, keys, size, 0.0)
    if bad := sum(int((~torch.isfinite(block)).any(dim=1).sum()) for _, block in blocks):
        raise TrainingError(f"scores of {bad} of {len(scores)} rows are not finite; they cannot be ranked")
