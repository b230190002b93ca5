"""Users seen through their items and items through their users: the parts of a model of whole histories."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.nn.layers import Draw, fill
from polytask.nn.ridge import Biases

_SLOW = 0.5  # biases learn at half the rate


class Side(NamedTuple):
    """Some users with their histories over all items, or items with theirs over all users.

    ``rows`` [B] are their indices; ``features`` [B, G]; ``history`` [B, I], 1 where it may be read; ``residual``
    [B, I], the rating less its ridge biases, 0 where there is none.
    """

    rows: Tensor
    features: Tensor
    history: Tensor
    residual: Tensor


class View(nn.Module):
    """n^-1/2 sum_j (Y_j + e_j X_j) over the n entries j of a history with residuals e_j (Koren, KDD 2008)."""

    def __init__(self, entries: int, dim: int) -> None:
        super().__init__()
        self.seen, self.rated = nn.Parameter(torch.zeros(entries, dim)), nn.Parameter(torch.zeros(entries, dim))

    def initialize(self, name: str, draw: Draw) -> None:
        """Both tables Y and X [I, dim] from N(0, 0.05^2)."""
        for part, parameter in self.named_parameters():
            fill(parameter, draw(f"{name}.{part}").standard_normal(parameter.shape) * 0.05)

    def pooled(self, side: Side) -> Tensor:
        """The pooled history [B, dim]."""
        return _scale(side.history) * (side.history @ self.seen + (side.history * side.residual) @ self.rated)

    def forward(self, own: Tensor, target: Tensor, side: Side) -> Tensor:
        """(own [B, dim] + pooled) . target [I, dim] for every target, its own entry left out exactly: [B, I]."""
        of_seen, of_rated = (self.seen * target).sum(dim=1), (self.rated * target).sum(dim=1)
        leaked = _scale(side.history) * side.history * (of_seen + side.residual * of_rated)
        return (own + self.pooled(side)) @ target.T - leaked


class Member(nn.Module):
    """The parameters of one model of histories, and its scores and ratings.

    The tables of items q and users p and of features are shared by all tasks, and
    ``gates`` [3, dim] scale the target for ranking, rating by user and rating by item.
    """

    def __init__(self, users: tuple[int, int], items: tuple[int, int], dim: int) -> None:
        super().__init__()
        (count, width), (number, breadth) = users, items
        self.item, self.user = nn.Parameter(torch.zeros(number, dim)), nn.Parameter(torch.zeros(count, dim))
        self.by_user, self.by_item = View(number, dim), View(count, dim)
        self.user_feature = nn.Parameter(torch.zeros(width, dim))
        self.item_feature = nn.Parameter(torch.zeros(breadth, dim))
        self.rank_item_feature, self.rate_item_feature = (nn.Parameter(torch.zeros(breadth)) for _ in range(2))
        self.rate_user_feature = nn.Parameter(torch.zeros(width))
        self.rank_bias, self.item_bias = (nn.Parameter(torch.zeros(number)) for _ in range(2))
        self.user_bias, self.mean = nn.Parameter(torch.zeros(count)), nn.Parameter(torch.zeros(()))
        self.gates = nn.Parameter(torch.ones(3, dim))

    def initialize(self, name: str, draw: Draw) -> None:
        """Tables from N(0, 0.05^2), those of features from N(0, 0.025^2), gates at 1, the rest at 0."""
        for part, parameter in self.named_parameters(recurse=False):
            spread = {"item": 0.05, "user": 0.05, "user_feature": 0.025, "item_feature": 0.025}.get(part, 0.0)
            values = draw(f"{name}.{part}").standard_normal(parameter.shape)
            fill(parameter, np.asarray(values * spread + float(part == "gates")))

    def squares(self) -> Tensor:
        """Sum of the squares of tables and feature weights []; biases and gates are free."""
        free = {"rank_bias", "item_bias", "user_bias", "mean", "gates"}
        return torch.stack([p.square().sum() for n, p in self.named_parameters() if n not in free]).sum(dim=0)

    def targets(self, item_features: Tensor) -> Tensor:
        """q_i and half the sum of the item's features [I, dim]."""
        return self.item + 0.5 * item_features @ self.item_feature

    def rank_users(self, side: Side) -> Tensor:
        """[B, dim + 1]: half the features, the pooled history, and 1; no table of users is read."""
        seen = _scale(side.history) * (side.history @ self.by_user.seen)
        return F.pad(0.5 * side.features @ self.user_feature + seen, (0, 1), value=1.0)

    def rank_items(self, item_features: Tensor) -> Tensor:
        """[I, dim + 1]: gated targets, and the items' biases."""
        bias = _SLOW * self.rank_bias + item_features @ self.rank_item_feature
        return torch.cat([self.targets(item_features) * self.gates[0], bias[:, None]], dim=1)

    def levels(self, biases: Biases, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of all users [V] (the mean included) and of all items [I], given their features."""
        of_user = biases.mean + biases.user + _SLOW * (self.mean + self.user_bias) + users @ self.rate_user_feature
        return of_user, biases.item + _SLOW * self.item_bias + items @ self.rate_item_feature

    def rate_users(self, side: Side, level: Tensor) -> Tensor:
        """[B, 2 dim + 2], whose product with :meth:`rate_items` is the mean of both views; ``level`` [B]."""
        features = 0.5 * side.features @ self.user_feature
        own = torch.where(side.rows[:, None] > 0, self.user[side.rows], 0.0)
        views = torch.cat([features + self.by_user.pooled(side), own + features], dim=1)
        return torch.cat([0.5 * views, level[:, None], torch.ones_like(level)[:, None]], dim=1)

    def rate_items(self, side: Side, level: Tensor) -> Tensor:
        """[J, 2 dim + 2] of some items with their histories over users; ``level`` [J]."""
        target = self.item[side.rows] + 0.5 * side.features @ self.item_feature
        state = 0.5 * side.features @ self.item_feature + self.by_item.pooled(side)
        views = torch.cat([target * self.gates[1], state * self.gates[2]], dim=1)
        return torch.cat([views, torch.ones_like(level)[:, None], level[:, None]], dim=1)


def _scale(history: Tensor) -> Tensor:
    """n^-1/2 [B, 1] of histories [B, I] with n entries, 1 for an empty one."""
    return history.sum(dim=1, keepdim=True).clamp(min=1).rsqrt()
