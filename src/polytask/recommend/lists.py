"""The k best items: of one user's scores, and of the inner products of many users with every item.

Both are functions of the scores alone: of equal scores the item with the lower index comes first, so every k gives the
beginning of the same list, whoever computes it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.metrics import largest
from polytask.metrics.ranking import check_finite

Pairs = tuple[Tensor, Tensor]
"""Items [E] of users, ragged: the users' rows [E] and the items' indices [E], int64, in any order."""

BUDGET = 1 << 25
"""Bytes of scores at a time, unless said otherwise."""

_WIDE, _WIDER = 1 << 17, 512  # items at a time: at least, and for each one of a list
_SLACK = 16  # more than k, so that rounding in a product of matrices decides nothing at the end of a list


def top(
    scores: np.ndarray, k: int, *, excluded: np.ndarray | None = None, candidates: np.ndarray | None = None
) -> np.ndarray:
    """The k best of the scores [I + 1] float64: indices [<= k] int64, best first.

    Left out are item 0 (the unknown one), those whose score is -inf or NaN, ``excluded`` [E] and, where there are
    ``candidates`` [C], all others. Both may name an item twice.
    """
    costs: np.ndarray = np.negative(scores)
    if candidates is not None:
        kept = np.full_like(costs, np.inf)
        kept[candidates] = costs[candidates]
        costs = kept
    costs[0] = np.inf
    if excluded is not None:
        costs[excluded] = np.inf
    return _first(costs, k)


def _first(costs: np.ndarray, k: int) -> np.ndarray:
    """Places of the k lowest finite or -inf costs [N], ascending; numpy sorts NaN behind everything."""
    if k < len(costs):
        rest = costs.copy()
        rest.partition(k - 1)
        bound = rest[k - 1]
    else:
        bound = np.inf
    places = (costs <= bound if bound < np.inf else costs < np.inf).nonzero()[0]
    found: np.ndarray = places[costs[places].argsort(kind="stable")[:k]]
    return found


@torch.no_grad()
def top_vectors(
    users: Tensor,
    items: Tensor,
    k: int,
    *,
    excluded: Pairs | None = None,
    candidates: Tensor | None = None,
    budget: int = BUDGET,
) -> tuple[Tensor, Tensor]:
    """The k items with the highest inner products for each user: items [U, k] int64 and scores [U, k] float32.

    ``users`` are vectors [U, W] and ``items`` vectors [I + 1, W], row 0 the unknown item, which is never found; where
    no item is left stand -1 and -inf. ``excluded`` items are left out by user; of ``candidates`` [C] only. Every
    product is computed; memory stays near ``budget`` bytes. A score that is not finite is a :class:`TrainingError`.
    """
    pool = None if candidates is None else torch.unique(candidates[candidates > 0])
    vectors = items[1:] if pool is None else items[pool]
    rows, places = _places(excluded, pool)
    width = k + _SLACK
    wide = min(max(_WIDE, _WIDER * width), len(vectors) + 1)
    size = max(1, budget // (4 * wide + 16 * width * users.shape[1]))
    found = torch.full((len(users), k), -1)
    scores = torch.full((len(users), k), -torch.inf)
    for start in range(0, len(users), size):
        block, inside = users[start : start + size], (rows >= start) & (rows < start + size)
        best = _best_places(block, torch.split(vectors, wide), width, (rows[inside] - start, places[inside]))
        best = torch.where(best < 0, -1, best + 1 if pool is None else pool[best])
        found[start : start + size], scores[start : start + size] = rescored(block, items, best, k)
    return found, scores


def _places(excluded: Pairs | None, pool: Tensor | None) -> Pairs:
    """Excluded pairs by place in the pool (None: items 1 to I), sorted by place; those outside it are dropped."""
    none = torch.zeros(0, dtype=torch.int64)
    rows, items = (none, none) if excluded is None else excluded
    places = items - 1
    if pool is not None and len(pool):
        places = torch.searchsorted(pool, items).clamp(max=len(pool) - 1)
        places = torch.where(pool[places] == items, places, -1)
    order = torch.argsort(places)
    order = order[places[order] >= 0]
    return rows[order], places[order]


def _best_places(users: Tensor, vectors: Sequence[Tensor], width: int, excluded: Pairs) -> Tensor:
    """Places [U, width] of the best of the vectors [N, W], which come in blocks; -1 where none is left.

    ``excluded`` is ordered by place.
    """
    values, found = torch.empty(len(users), 0), torch.empty(len(users), 0, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    rows, places = excluded
    start = first = 0
    memory = torch.empty(len(users) * max(map(len, vectors)))  # one for all blocks: fresh memory costs as much as use
    for block in vectors:
        scores = torch.mm(users, block.T, out=memory[: len(users) * len(block)].view(len(users), -1))
        check_finite(scores, none, len(scores))
        last = int(torch.searchsorted(places, start + len(block)))
        scores[rows[first:last], places[first:last] - start] = -torch.inf
        better, where = largest(scores, width)
        values, order = largest(torch.cat([values, better], dim=1), width)
        found = torch.cat([found, where + start], dim=1).gather(1, order)
        start, first = start + len(block), last
    return torch.where(values == -torch.inf, -1, found)


def rescored(users: Tensor, items: Tensor, found: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the items ``found`` [U, n] for each user, -1 for none: items [U, k] and scores [U, k] float32.

    Products are added up in float64, so that a score does not depend on which others were computed beside it.
    """
    found = found.sort(dim=1).values
    scores = (users[:, None].double() * items[found.clamp(min=0)].double()).sum(dim=2).float()
    scores[found < 0] = -torch.inf
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    rest = max(0, k - found.shape[1])
    found = torch.nn.functional.pad(found.gather(1, order)[:, :k], (0, rest), value=-1)
    return found, torch.nn.functional.pad(scores[:, :k], (0, rest), value=-torch.inf)
