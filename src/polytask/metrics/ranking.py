"""Full rankings: the average rank of held-out items among all candidates, and the first k candidates."""

from torch import Tensor

from polytask.errors import TrainingError
from polytask.kernels.ranks import BUDGET, Excluded, Ranking, Targets, rank_scores, rank_vectors


def average_ranks(
    scores: Tensor,
    targets: Tensor,
    rows: Tensor,
    excluded: Tensor | Excluded | None = None,
    budget: int = BUDGET,
) -> Tensor:
    """Rank items targets [N] among the candidates of their rows [N] in scores [U, I]: [N] float64, 1 is best.

    ``rank = 1 + #(scored higher) + 1/2 #(others scored the same)`` over the items of the row that are not in
    ``excluded`` (pairs [E, 2] of row and item, or by row). Temporary memory stays near ``budget`` bytes (one row at
    least). Indices are on the CPU. An index out of range or a target that is excluded is a ValueError; a
    candidate's score that is not finite, in any row, a :class:`TrainingError` with the number of such rows.
    """
    return rankings_of_scores(scores, Targets(rows, targets), excluded, 0, budget).ranks


def top_items(scores: Tensor, k: int, excluded: Tensor | Excluded | None = None) -> Tensor:
    """The k best-scored items of each row of scores [U, I]: [U, k] int64, best first, -1 where none is left.

    Items of ``excluded`` (pairs [E, 2] of row and item, or by row) are left out. Of equal scores the item with the
    lower index comes first. A pair out of range is a ValueError; a score that is not finite a :class:`TrainingError`.
    """
    return rankings_of_scores(scores, Targets.none(), excluded, k).lists


def rankings_of_scores(
    scores: Tensor,
    targets: Targets,
    excluded: Tensor | Excluded | None = None,
    k: int = 0,
    budget: int = BUDGET,
) -> Ranking:
    """:func:`average_ranks` of the targets [N] and :func:`top_items` [U, k], from one pass over scores [U, I]."""
    left = _checked(scores.shape, targets, excluded)
    return _finite(rank_scores(scores, targets, left, k, budget), len(scores))


def ranks_of_vectors(
    users: Tensor, items: Tensor, targets: Tensor, rows: Tensor, excluded: Tensor | Excluded | None = None
) -> Tensor:
    """:func:`average_ranks` of targets [N] by the products of users [U, d] and items [I, d], never held at once."""
    return rankings_of_vectors(users, items, Targets(rows, targets), excluded).ranks


def top_of_vectors(users: Tensor, items: Tensor, k: int, excluded: Tensor | Excluded | None = None) -> Tensor:
    """:func:`top_items` by the inner products of users [U, d] and items [I, d], never held at once."""
    return rankings_of_vectors(users, items, Targets.none(), excluded, k).lists


def rankings_of_vectors(
    users: Tensor, items: Tensor, targets: Targets, excluded: Tensor | Excluded | None = None, k: int = 0
) -> Ranking:
    """:func:`rankings_of_scores` that are inner products of users [U, d] and items [I, d], never held at once."""
    if users.dim() != 2 or items.dim() != 2 or users.shape[1] != items.shape[1]:
        raise ValueError(f"ranking: vectors must be [U, d] and [I, d], not {[*users.shape]} and {[*items.shape]}")
    left = _checked((len(users), len(items)), targets, excluded)
    return _finite(rank_vectors(users, items, targets, left, k), len(users))


def _checked(shape: tuple[int, ...], targets: Targets, excluded: Tensor | Excluded | None) -> Excluded:
    """What is left out of rankings over scores of this shape."""
    if len(shape) != 2 or targets.items.dim() != 1 or targets.items.shape != targets.rows.shape:
        shapes = f"{[*shape]}, {[*targets.items.shape]} and {[*targets.rows.shape]}"
        raise ValueError(f"ranking: scores, targets and rows must be [U, I], [N] and [N], not {shapes}")
    if isinstance(excluded, Tensor) and (excluded.dim() != 2 or excluded.shape[1] != 2):
        raise ValueError(f"ranking: excluded must be [E, 2], not {[*excluded.shape]}")
    if any(len(n) and not 0 <= int(n.min()) <= int(n.max()) < end for n, end in zip(targets, shape, strict=True)):
        raise ValueError(f"ranking: targets point outside scores {[*shape]}")
    left = excluded if isinstance(excluded, Excluded) else Excluded.of(excluded, *shape)
    if twice := left.count(targets):
        raise ValueError(f"average_ranks: {twice} of {len(targets.items)} targets are also excluded")
    return left


def _finite(found: Ranking, rows: int) -> Ranking:
    if found.bad:
        raise TrainingError(f"scores of {found.bad} of {rows} rows are not finite; they cannot be ranked")
    return found
