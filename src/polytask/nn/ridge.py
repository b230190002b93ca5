"""Closed forms that a model may start from or be blended with: ridge biases, and a linear item-item model."""

from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDS = 20
_USER, _ITEM = 5.0, 3.0  # pseudo-counts that pull a bias to zero


class Biases(NamedTuple):
    """A constant ``mean`` [], and what every ``user`` [V] and ``item`` [I] adds to it."""

    mean: Tensor
    user: Tensor
    item: Tensor


def ridge_biases(user: Tensor, item: Tensor, label: Tensor, shape: tuple[int, int]) -> Biases:
    """b_i = sum (y - m - b_u) / (n_i + 3) and b_u = sum (y - m - b_i) / (n_u + 5), in turn (Koren et al., 2009).

    ``user``, ``item`` and ``label`` [N] (NaN = missing); ``shape`` is (V, I). Without a label all are zero.
    """
    known = ~label.isnan()
    user, item, label = user[known], item[known], label[known].double()
    mean = label.mean() if len(label) else torch.zeros((), dtype=torch.float64)
    of_user, of_item = (torch.zeros(n, dtype=torch.float64) for n in shape)
    counts = torch.bincount(user, minlength=shape[0]), torch.bincount(item, minlength=shape[1])
    for _ in range(_ROUNDS):
        of_item = torch.bincount(item, label - mean - of_user[user], shape[1]) / (counts[1] + _ITEM)
        of_user = torch.bincount(user, label - mean - of_item[item], shape[0]) / (counts[0] + _USER)
    return Biases(mean.float(), of_user.float(), of_item.float())


def linear_weights(seen: Tensor, penalty: float) -> Tensor:
    """Item-item weights B [I, I] with a zero diagonal, minimizing |X - X B|^2 + penalty |B|^2 (EASE; Steck, WWW 2019).

    ``seen`` X [V, I] is 1 where a user has an item. The inverse is taken in float64.
    """
    gram = (seen.T @ seen).double()
    gram.diagonal().add_(penalty)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    return inverse.div_(-inverse.diagonal().clone()).fill_diagonal_(0.0).float()
