"""The factorization of the reference exercise: user, item and their element-wise product."""

import torch
from torch import Tensor, nn

from polytask.errors import ConfigError
from polytask.nn.bodies.shape import Shape, pooled


class Factorize(nn.Module):
    """[u; q; u∘q] of the user's and the item's summed embeddings, then every context field; no parameters.

    All tasks read the same representation [width = (3 + context fields) · dim]. With ids alone and tower
    heads of one hidden layer this is the network of Stanford CS 330, Homework 0 (2021); with further fields
    on a side it sums them, as LightFM does (Kula, 2015).
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        if not shape.count("user") or not shape.count("item"):
            raise ConfigError(
                "body 'factorize' needs a user and an item column; use 'shared_bottom' for rows without them"
            )
        self.width = (3 + shape.count("context")) * shape.dim

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        users, items, *context = self.shape.split(x)
        user, item = pooled(users), pooled(items)
        joined = torch.cat([user, item, user * item, *(c.flatten(start_dim=1) for c in context)], dim=-1)
        return [joined] * self.shape.tasks
