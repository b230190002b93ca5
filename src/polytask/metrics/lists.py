"""Metrics of whole recommendation lists, beyond accuracy: how much of the catalogue is shown, and how even or novel.

They read the first k items of the users who have held-out items, from the same candidates as the ranks.
"""

import torch
from torch import Tensor

from polytask.metrics.base import Lists, Metric


def coverage(read: Lists, k: int) -> Tensor:
    """Share [] of the catalogue that is in at least one list."""
    return (read.exposure(k) > 0).double().mean()


def gini(read: Lists, k: int) -> Tensor:
    """Gini index [] of the items' exposure x: sum_i (2i - n - 1) x_(i) / (n sum x); 0 if all are shown equally often.

    x_(i) ascends over the n items of the catalogue, those never shown included.
    """
    exposure = read.exposure(k).double().sort().values
    n = len(exposure)
    return (torch.arange(1 - n, n, 2) * exposure).sum() / (n * exposure.sum())


def novelty(read: Lists, k: int) -> Tensor:
    """Mean self-information -log2 p [] of the listed items, in bits (Zhou et al., 2010).

    p is the item's share of all earlier interactions; an item that had none counts as if it had one.
    """
    exposure, popularity = read.exposure(k).double(), read.popularity.double()
    bits = -(popularity.clamp(min=1) / popularity.sum()).log2()
    return torch.where(popularity.sum() > 0, (exposure * bits).sum() / exposure.sum(), torch.nan)


LISTS: dict[str, Metric] = {
    "coverage": Metric("coverage", "higher", "lists", coverage, cutoff=True),
    "gini": Metric("gini", "lower", "lists", gini, cutoff=True),
    "novelty": Metric(
        "novelty", "higher", "lists", novelty, cutoff=True, undefined="no earlier part says how popular items are"
    ),
}
"""Metrics of ranking tasks that read lists, by name."""
