"""The k best items: of one user's scores, and of the inner products of many users with every item.

Both are functions of the scores alone: of equal scores the item with the lower index comes first, so every k gives the
beginning of the same list, whoever computes it.
"""

import numpy as np
import torch
from torch import Tensor

from polytask.kernels.ranks import Excluded
from polytask.metrics import top_items, top_of_vectors

Pairs = tuple[Tensor, Tensor]
"""Items [E] of users, ragged: the users' rows [E] and the items' indices [E], int64, in any order."""

BUDGET = 1 << 25
"""Bytes of vectors that are scored again at a time, unless said otherwise."""

_FEW = 3  # users for whom reading the items' vectors takes longer than multiplying them: then as one product
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
    vectors = items if pool is None else items[pool]
    left = _left_out(excluded, pool, len(users), len(vectors))
    if len(users) <= _FEW:
        best = top_items(users @ vectors.T, k + _SLACK, left)
    else:
        best = top_of_vectors(users, vectors, k + _SLACK, left)
    if pool is not None and len(pool):
        best = torch.where(best < 0, -1, pool[best])
    size = max(1, budget // (16 * (k + _SLACK) * users.shape[1]))
    found = torch.full((len(users), k), -1)
    scores = torch.full((len(users), k), -torch.inf)
    for start in range(0, len(users), size):
        rows = slice(start, start + size)
        found[rows], scores[rows] = rescored(users[rows], items, best[rows], k)
    return found, scores


def _left_out(pairs: Pairs | None, pool: Tensor | None, rows: int, width: int) -> Excluded:
    """Excluded pairs by place in the pool (None: all items); those outside it are dropped, as is the unknown item."""
    row, item = (torch.zeros(0, dtype=torch.int64),) * 2 if pairs is None else pairs
    if pool is None:
        return Excluded.of(torch.stack([row, item], dim=1), rows, width)._replace(first=1)
    inside = torch.isin(item, pool)
    return Excluded.of(torch.stack([row[inside], torch.searchsorted(pool, item[inside])], dim=1), rows, width)


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
