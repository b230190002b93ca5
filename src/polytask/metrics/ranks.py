"""Metrics of the ranks of held-out items: a value per user, then the mean over the users who have some."""

import torch
from torch import Tensor

from polytask.metrics.base import Metric, Ranks


def mrr(read: Ranks, _: int) -> Tensor:
    """Per user [V] the mean of 1/rank over all held-out items, not the first hit's."""
    return read.sum(1 / read.ranks) / read.held_out


def mrr_first(read: Ranks, _: int) -> Tensor:
    """Per user [V] 1 / the best rank."""
    first = read.ranks.new_full((int(read.user.max()) + 1,), torch.inf)
    return 1 / first.scatter_reduce(0, read.user, read.ranks, "amin")


def hits(read: Ranks, k: int) -> Tensor:
    """Per user [V] the held-out items in the first k."""
    # more than k items can share an average rank <= k, but a list of k holds no more than k of them
    return read.sum(read.ranks <= k).clamp(max=k)


def hit(read: Ranks, k: int) -> Tensor:
    """Per user [V] whether any held-out item is in the first k."""
    return hits(read, k).clamp(max=1)


def recall(read: Ranks, k: int) -> Tensor:
    """Per user [V] the share of the held-out items that are in the first k."""
    return hits(read, k) / read.held_out


def precision(read: Ranks, k: int) -> Tensor:
    """Per user [V] the share of the first k that are held-out items."""
    return hits(read, k) / k


def average_precision(read: Ranks, k: int) -> Tensor:
    """Per user [V] the sum over hits of precision at their rank, over min(k, held-out)."""
    at_hit = _place(read) / read.ranks
    return (read.sum(torch.where(read.ranks <= k, at_hit, 0.0)) / read.held_out.clamp(max=k)).clamp(max=1)


def ndcg(read: Ranks, k: int) -> Tensor:
    """Per user [V] the sum of 1/log2(1 + rank) over hits, over that of the ideal list (Jarvelin & Kekalainen, 2002)."""
    gain = torch.where(read.ranks <= k, 1 / torch.log2(1 + read.ranks), 0.0)
    ideal = read.held_out.clamp(max=k)
    best = (1 / torch.log2(torch.arange(int(ideal.max()), dtype=torch.float64) + 2)).cumsum(dim=0)
    return (read.sum(gain) / best[ideal - 1]).clamp(max=1)


def _place(read: Ranks) -> Tensor:
    """Average rank [N] of every held-out item among those of its user alone."""
    order = read.ranks.argsort(stable=True)
    order = order[read.user[order].argsort(stable=True)]
    ranks, user = read.ranks[order], read.user[order]
    new = (ranks.diff() != 0) | (user.diff() != 0)
    tie = torch.cat([new.new_zeros(1), new]).cumsum(dim=0)
    tied = torch.bincount(tie).double()
    average = tied.cumsum(dim=0) - (tied - 1) / 2
    before = read.held_out.cumsum(dim=0) - read.held_out
    place = torch.empty_like(read.ranks)
    place[order] = average[tie] - before[user]
    return place


RANKS: dict[str, Metric] = {
    "mrr": Metric("mrr", "higher", "ranks", mrr),
    "mrr_first": Metric("mrr_first", "higher", "ranks", mrr_first),
    "ndcg": Metric("ndcg", "higher", "ranks", ndcg, cutoff=True),
    "recall": Metric("recall", "higher", "ranks", recall, cutoff=True),
    "hit": Metric("hit", "higher", "ranks", hit, cutoff=True),
    "precision": Metric("precision", "higher", "ranks", precision, cutoff=True),
    "map": Metric("map", "higher", "ranks", average_precision, cutoff=True),
}
"""Metrics of ranking tasks that read ranks, by name.

``mrr`` is the mean over *all* held-out items, not the first-hit reciprocal rank, which is ``mrr_first``. Example:
held-out {A,B} in the ranking B,C,D,A,G; {B} in A,B,C,G,D; {A,B,C} in A,D,B,C,G give
(1/2 (1/4 + 1) + 1/2 + 1/3 (1 + 1/3 + 1/4)) / 3 = 0.550926, and 0.833333 for ``mrr_first``.
"""
