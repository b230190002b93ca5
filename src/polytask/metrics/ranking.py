"""Full rankings: the average rank of held-out items among all candidates, and the first k candidates."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from polytask.errors import TrainingError

_SORT_FROM = 4  # targets per row from which sorting a row once beats comparing it with every target
_GROUP = 64  # neighboring scores of which only the maximum is ranked at first
_CACHED = 1 << 20  # bytes compared at a time: what stays in a core's own cache


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
    check_finite(scores, keys, size)
    order = torch.argsort(rows, stable=True)
    bounds = torch.searchsorted(rows[order], torch.arange(0, len(scores) + size, size)).tolist()
    ranks = torch.empty(len(rows), dtype=torch.float64)
    for i, (start, block) in enumerate(_candidates(scores, keys, size, -torch.inf)):
        part = order[bounds[i] : bounds[i + 1]]
        local = rows[part] - start
        target = block[local, targets[part]]
        ranks[part] = _by_sorting(block, target, local) if often else _by_signs(block, target, local)
    return ranks


def top_items(scores: Tensor, k: int, excluded: Tensor | None = None) -> Tensor:
    """The k best-scored items of each row of scores [U, I]: [U, k] int64, best first, -1 where none is left.

    Items of ``excluded`` [E, 2] (pairs of row and item) are left out. Of equal scores the item with the lower
    index comes first. A pair out of range is a ValueError; a score that is not finite a :class:`TrainingError`.
    """
    none = torch.empty(0, dtype=torch.int64)
    _check_ranking(scores, none, none, excluded)
    keys, width = _sorted_keys(excluded, scores.shape[1]), min(k, scores.shape[1])
    found = torch.full((len(scores), k), -1)
    if not len(scores):
        return found
    check_finite(scores, keys, len(scores))
    ((_, block),) = _candidates(scores.detach(), keys, len(scores), -torch.inf)
    values, items = largest(block, width)
    found[:, :width] = torch.where(values == -torch.inf, -1, items)
    return found


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row of [U, I], largest first, and their places: both [U, min(k, I)].

    Of equal scores the one at the lower place comes first; -inf is a score like others, NaN must not occur.
    """
    width = scores.shape[1]
    if width <= 4 * _GROUP * k:
        return _largest(scores, min(k, width))
    # at most k - 1 groups come before that of a score among the k largest: each holds one that comes before it
    cut = width // _GROUP * _GROUP
    groups = _largest(scores[:, :cut].view(len(scores), -1, _GROUP).amax(dim=2), k)[1].sort(dim=1).values
    inside = (groups[:, :, None] * _GROUP + torch.arange(_GROUP)).flatten(start_dim=1)
    places = torch.cat([inside, torch.arange(cut, width).expand(len(scores), -1)], dim=1)
    values, order = _largest(scores.gather(1, places), k)
    return values, places.gather(1, order)


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, places = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    least, places = values[:, k - 1 : k], places[:, :k]
    if len(tied := (values[:, k:] == least).nonzero()[:, 0]):  # topk keeps any of those that share the last place
        places[tied] = _lowest_places(scores[tied], least[tied], k)
    places = places.sort(dim=1).values
    values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def _lowest_places(scores: Tensor, least: Tensor, k: int) -> Tensor:
    """Places [U, k] of the scores above ``least`` [U, 1] and of the first that equal it."""
    above, tied = scores > least, scores == least
    kept = above | (tied & (tied.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)))
    return kept.nonzero()[:, 1].view(len(scores), k)


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
        raise ValueError(f"ranking: scores, targets and rows must be [U, I], [N] and [N], not {shapes}")
    if excluded is not None and (excluded.dim() != 2 or excluded.shape[1] != 2):
        raise ValueError(f"ranking: excluded must be [E, 2], not {[*excluded.shape]}")
    pairs = torch.stack((rows, targets), dim=1)
    for name, given in (("targets", pairs), ("excluded", pairs[:0] if excluded is None else excluded)):
        if bool(((given < 0) | (given >= torch.tensor(scores.shape))).any()):
            raise ValueError(f"ranking: {name} point outside scores {[*scores.shape]}")


def _check_not_excluded(own: Tensor, keys: Tensor) -> None:
    found = torch.searchsorted(keys, own, right=True) - torch.searchsorted(keys, own)
    if twice := int((found > 0).sum()):
        raise ValueError(f"average_ranks: {twice} of {len(own)} targets are also excluded")


def check_finite(scores: Tensor, keys: Tensor, size: int) -> None:
    """Refuse scores [U, I] that are not finite, but for those of excluded keys; rows are looked at ``size`` at once."""
    if bool(torch.isfinite(scores.sum(dim=1)).all()):  # a sum is finite only if every term is
        return
    blocks = _candidates(scores, keys, size, 0.0)
    if bad := sum(int((~torch.isfinite(block)).any(dim=1).sum()) for _, block in blocks):
        raise TrainingError(f"scores of {bad} of {len(scores)} rows are not finite; they cannot be ranked")
