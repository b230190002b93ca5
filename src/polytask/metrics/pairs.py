"""Pairs of a positive and a negative row, counted in the time of a sort."""

import torch
from torch import Tensor


def ordered_pairs(prediction: Tensor, positive: Tensor, weight: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Per group [G]: the (positive, negative) pairs with the positive predicted higher, ties one half; all pairs.

    Rows [N] ascend by group (0..G-1), and by prediction within a group; positive is bool. A pair counts as the
    product of its rows' weights. The first over the second is the AUC of a group (Mann & Whitney, 1947).
    """
    up, down = torch.where(positive, weight, 0.0), torch.where(positive, 0.0, weight)
    new = (prediction.diff() != 0) | (group.diff() != 0)
    tie = torch.cat([new.new_zeros(1), new]).cumsum(dim=0)  # rows of one group and prediction share a number
    tied, negatives = torch.bincount(tie, weights=down), torch.bincount(group, weights=down)
    before = tied.cumsum(dim=0) - tied
    below = (before + tied / 2)[tie] - (negatives.cumsum(dim=0) - negatives)[group]
    return torch.bincount(group, weights=up * below), torch.bincount(group, weights=up) * negatives
