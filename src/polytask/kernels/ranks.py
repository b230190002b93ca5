"""Ranks of some items among all candidates of a row, and the first k candidates, from scores or from vectors.

On the CPU one pass over tiles (:mod:`polytask.kernels.sweep`) finds both; a matrix of all scores exists only where it
was given. The plain form, for other devices, takes scores a block of rows at a time.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polytask.kernels.sweep import (
    ROWS,
    TOGETHER,
    WIDTH,
    Sweep,
    count_excluded,
    order_pairs,
    read_pairs,
    score_pairs,
    sweep_scores,
    sweep_vectors,
)
from polytask.kernels.threads import in_parts

BUDGET = 1 << 26
"""Bytes of scores that exist at once, unless said otherwise."""

_WIDEST = 512  # dimensions above which a product of matrices, which blocks them too, is faster than tiles
_WORTH = 1 << 24  # products of two numbers that are worth another thread
_MANY = 8  # tiles of rows for each thread: with fewer, threads take items instead
_GROUP = 64  # neighboring scores of which only the maximum is ranked at first
_OUTSIDE = 2  # what read_pairs says of a pair out of range


class Targets(NamedTuple):
    """What is to be ranked, in any order: ``rows`` [N] and ``items`` [N], int64, on the CPU."""

    rows: Tensor
    items: Tensor

    @classmethod
    def none(cls) -> "Targets":
        """Nothing to be ranked."""
        return cls(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))

    def of_rows(self, first: int, end: int) -> tuple[Tensor, "Targets"]:
        """Those of the rows [first:end], counted from there, and their places [n] among all."""
        places = ((self.rows >= first) & (self.rows < end)).nonzero()[:, 0]
        return places, Targets(self.rows[places] - first, self.items[places])


class Excluded(NamedTuple):
    """Items that are no candidates of a row u [U]: ``items[starts[u]:ends[u]]``, ascending, and all before ``first``.

    Spans may overlap. All are int64 and on the CPU.
    """

    items: Tensor
    starts: Tensor
    ends: Tensor
    first: int = 0

    @classmethod
    def of(cls, pairs: Tensor | None, rows: int, width: int) -> "Excluded":
        """Pairs [E, 2] of one of the ``rows`` and one of ``width`` items, in any order and any number of times."""
        if pairs is None:
            return cls(torch.empty(0, dtype=torch.int64), *torch.zeros(2, rows, dtype=torch.int64))
        starts = np.zeros(rows + 1, dtype=np.int64)
        fault = read_pairs(pairs.numpy(), rows, width, starts)
        if fault == _OUTSIDE:
            raise ValueError(f"ranking: excluded point outside scores {[rows, width]}")
        if fault:
            items, ends = np.empty(len(pairs), dtype=np.int64), starts[:-1].copy()
            order_pairs(pairs.numpy(), width, items, ends)
            return cls(torch.from_numpy(items), torch.from_numpy(starts[:-1]), torch.from_numpy(ends))
        bounds = torch.from_numpy(starts)
        return cls(pairs[:, 1].contiguous(), bounds[:-1], bounds[1:])

    def count(self, targets: Targets) -> int:
        """How many of the targets are excluded."""
        spans = (self.items.numpy(), self.starts.numpy(), self.ends.numpy())
        before = int((targets.items < self.first).sum()) if self.first else 0
        return before + int(count_excluded(targets.rows.numpy(), targets.items.numpy(), *spans))

    def of_rows(self, first: int, end: int) -> "Excluded":
        """Those of the rows [first:end]."""
        return self._replace(starts=self.starts[first:end], ends=self.ends[first:end])

    def mask(self, width: int) -> Tensor:
        """Which of ``width`` items are candidates [U, width] bool."""
        counts = self.ends - self.starts
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        within = torch.arange(len(rows)) - torch.repeat_interleave(counts.cumsum(dim=0) - counts, counts)
        found = torch.ones(len(counts), width, dtype=torch.bool)
        found[rows, self.items[self.starts[rows] + within]] = False
        found[:, : self.first] = False
        return found


class Ranking(NamedTuple):
    """``ranks`` [N] float64 of the targets, ``lists`` [U, k] int64 of first items, -1 where none is left.

    ``bad`` counts the rows with a candidate whose score is not finite; where there are any, the rest means nothing.
    """

    ranks: Tensor
    lists: Tensor
    bad: int


def rank_scores(scores: Tensor, targets: Targets, excluded: Excluded, k: int = 0, budget: int = BUDGET) -> Ranking:
    """Rank targets by the scores [U, I] of their rows, and list each row's k best items.

        rank = 1 + #(scored higher) + 1/2 #(others scored the same)

    Of equal scores the item with the lower index is listed first. ``budget`` bounds temporary memory, in bytes.
    """
    scores, on_cpu = scores.detach(), scores.device.type == "cpu"
    if on_cpu and scores.dtype in (torch.float32, torch.float64):
        return _sweep_scores(scores, targets, excluded, k)
    form = _sweep_scores if on_cpu else plain_rank_scores
    wide = torch.promote_types(scores.dtype, torch.float32)
    size = max(1, budget // (4 * wide.itemsize * max(1, scores.shape[1])))
    return in_blocks(
        len(scores), size, targets, excluded, lambda a, b, own, out: form(scores[a:b].to(wide), own, out, k)
    )


def rank_vectors(
    users: Tensor, items: Tensor, targets: Targets, excluded: Excluded, k: int = 0, budget: int = BUDGET
) -> Ranking:
    """The :func:`rank_scores` of inner products of users [U, d] and items [I, d].

    On the CPU, and up to 512 dimensions, terms are added up in their order (:mod:`polytask.kernels.sweep`), so that
    equal vectors tie; otherwise as the product of matrices has them. ``budget`` bounds temporary memory, in bytes.
    """
    wide = torch.promote_types(torch.promote_types(users.dtype, items.dtype), torch.float32)
    users, items = users.detach().to(wide), items.detach().to(wide)
    if users.device.type == "cpu" and users.shape[1] <= _WIDEST:
        return _sweep_vectors(users, items, targets, excluded, k)
    size = max(1, budget // (4 * wide.itemsize * max(1, len(items))))
    return in_blocks(
        len(users), size, targets, excluded, lambda a, b, own, out: rank_scores(users[a:b] @ items.T, own, out, k)
    )


def in_blocks(
    rows: int, size: int, targets: Targets, excluded: Excluded, rank: Callable[[int, int, Targets, Excluded], Ranking]
) -> Ranking:
    """The rankings of all rows, from those that ``rank(first, end, targets, excluded)`` gives of ``size`` at a time."""
    ranks, found = torch.empty(len(targets.rows), dtype=torch.float64), []
    for first in range(0, max(1, rows), size):
        end = min(first + size, rows)
        places, own = targets.of_rows(first, end)
        found.append(rank(first, end, own, excluded.of_rows(first, end)))
        ranks[places] = found[-1].ranks
    return Ranking(ranks, torch.cat([f.lists for f in found]), sum(f.bad for f in found))


def _sweep_scores(scores: Tensor, targets: Targets, excluded: Excluded, k: int) -> Ranking:
    targets, order = _by_row(targets)
    own = scores[targets.rows, targets.items].numpy()
    sweep = _begin(own, _starts(targets, len(scores)), excluded, (len(scores), min(k, scores.shape[1])))
    table, worth = scores.numpy(), _WORTH // max(1, scores.shape[1])
    in_parts(len(scores), lambda a, b: sweep_scores(table[a:b], a, excluded.first, sweep), worth)
    return _end([sweep], order, k)


def _sweep_vectors(users: Tensor, items: Tensor, targets: Targets, excluded: Excluded, k: int) -> Ranking:
    targets, order = _by_row(targets)
    rest = [-n % TOGETHER for n in users.shape]
    padded = torch.nn.functional.pad(users, (0, rest[1], 0, rest[0])).numpy() if any(rest) else users.numpy()
    table, own = items.contiguous().numpy(), np.empty(len(targets.rows), padded.dtype)
    score_pairs(padded, table, targets.rows.numpy(), targets.items.numpy(), own)
    starts, size = _starts(targets, len(users)), (len(users), min(k, len(items)))
    first, sweeps = excluded.first, dict[int, Sweep]()

    # no operator of PyTorch in threads: each that calls one is given threads of its own, which wait by spinning
    def sweep_rows(start: int, end: int) -> None:
        span = (first, len(table))
        sweep_vectors(padded[start * ROWS : end * ROWS], start * ROWS, table, span, sweeps[0])

    def sweep_panels(start: int, end: int) -> None:
        span = (first + start * WIDTH, min(first + end * WIDTH, len(table)))
        sweeps[start] = _begin(own, starts, excluded, size)
        sweep_vectors(padded, 0, table, span, sweeps[start])

    tiles, panels = -(-len(padded) // ROWS), -(-max(0, len(items) - first) // WIDTH)
    worth = 1 + _WORTH // (ROWS * WIDTH * max(1, padded.shape[1]))
    if tiles >= _MANY * torch.get_num_threads():
        sweeps[0] = _begin(own, starts, excluded, size)
        in_parts(tiles, sweep_rows, 1 + worth // max(1, panels))
    else:
        in_parts(panels, sweep_panels, 1 + worth // max(1, tiles))
    return _end([sweeps[n] for n in sorted(sweeps)], order, k)


def _by_row(targets: Targets) -> tuple[Targets, Tensor | None]:
    """The targets ordered by row, and their places before, None where they were so."""
    if bool((targets.rows[1:] >= targets.rows[:-1]).all()):
        return Targets(targets.rows.contiguous(), targets.items.contiguous()), None
    order = torch.argsort(targets.rows, stable=True)
    return Targets(targets.rows[order], targets.items[order]), order


def _starts(targets: Targets, rows: int) -> np.ndarray:
    """Where the targets of each of ``rows`` begin, and where the last end [rows + 1]."""
    return np.searchsorted(targets.rows.numpy(), np.arange(rows + 1))


def _begin(scores: np.ndarray, starts: np.ndarray, excluded: Excluded, size: tuple[int, int]) -> Sweep:
    """The state of a pass over ``size`` rows and places of a list, before it."""
    count, left = len(scores), (excluded.items.numpy(), excluded.starts.numpy().copy(), excluded.ends.numpy())
    higher, same, bad = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64), np.zeros(size[0], dtype=bool)
    return Sweep(*left, scores, starts, higher, same, bad, np.full(size, -np.inf, scores.dtype), np.full(size, -1))


def _end(sweeps: list[Sweep], order: Tensor | None, k: int) -> Ranking:
    """What passes over neighboring ranges of items found, put together; ``order`` is that of the targets."""
    higher, same, bad = (sum(getattr(s, name) for s in sweeps) for name in ("higher", "same", "bad"))
    ranks = torch.from_numpy(1 + higher + (same - 1) / 2)
    if order is not None:
        ranks = torch.empty_like(ranks).index_copy_(0, order, ranks)
    values, items = (torch.from_numpy(np.concatenate([getattr(s, n) for s in sweeps], 1)) for n in ("values", "items"))
    items, by_item = items.sort(dim=1)
    by_score = values.gather(1, by_item).sort(dim=1, descending=True, stable=True).indices
    lists = items.gather(1, by_score[:, :k])
    return Ranking(ranks, torch.nn.functional.pad(lists, (0, k - lists.shape[1]), value=-1), int(np.sum(bad > 0)))


def plain_rank_scores(scores: Tensor, targets: Targets, excluded: Excluded, k: int = 0) -> Ranking:
    """The reference for :func:`rank_scores`, on any device; it copies the scores."""
    candidate = excluded.mask(scores.shape[1]).to(scores.device)
    bad = int((~torch.isfinite(scores) & candidate).any(dim=1).sum())
    block = scores.masked_fill(~candidate, -torch.inf)
    ranks, step = torch.empty(len(targets.rows), dtype=torch.float64), max(1, len(scores))
    for at in range(0, len(ranks), step):  # as many targets as there are rows need no more memory than these
        rows, items = (t[at : at + step].to(scores.device) for t in targets)
        others, own = block[rows], block[rows, items, None]
        ranks[at : at + step] = ((others > own).sum(dim=1) + ((others == own).sum(dim=1) + 1) / 2.0).double().cpu()
    lists = torch.empty(len(scores), 0, dtype=torch.int64)
    if k and not bad:
        values, items = largest(block, k)
        lists = torch.where(values == -torch.inf, -1, items).cpu()
    return Ranking(ranks, torch.nn.functional.pad(lists, (0, k - lists.shape[1]), value=-1), bad)


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
    inside = (groups[:, :, None] * _GROUP + torch.arange(_GROUP, device=scores.device)).flatten(start_dim=1)
    rest = torch.arange(cut, width, device=scores.device).expand(len(scores), -1)
    places = torch.cat([inside, rest], dim=1)
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
