"""The factorization of the reference exercise: user, item and their element-wise product."""

from typing import get_args

import torch
from torch import Tensor, nn

from polytask.errors import ConfigError
from polytask.nn.bodies.shape import Shape, pooled
from polytask.schema import Side


class Factorize(nn.Module):
    """[u; q; u∘q] of the user's and the item's summed embeddings, then every context field; no parameters.

    All tasks read the same representation [width = (3 + context fields) · dim]. With ids alone and tower
    heads of one hidden layer this is the network of Stanford CS 330, Homework 0 (2021); with further fields
    on a side it sums them, as LightFM does (Kula, 2015).
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        users, items, contexts = (sum(i.side == side for i in shape.inputs) for side in get_args(Side))
        if not users or not items:
            raise ConfigError(
                "body 'factorize' needs a user and an item column; use 'shared_bottom' for rows without them"
            )
        self.width = (3 + contexts) * shape.dim

    def forward(self, x: Tensor) -> Tensor:
        """Representations [T, B, width] of embeddings [B, F, dim]."""
        users, items, contexts = self.shape.split(x)
        user, item = pooled(users), pooled(items)
        parts = [user, item, user * item, *([contexts.flatten(start_dim=1)] if contexts.shape[1] else [])]
        joined = torch.cat(parts, dim=-1)
        return joined.expand(self.shape.tasks, *joined.shape)
