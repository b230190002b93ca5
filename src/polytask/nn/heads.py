"""From a representation to a task's logit: a tower over the body, or an inner product that can be indexed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.nn.bodies.shape import Shape, pooled
from polytask.nn.embedding import Tables
from polytask.nn.layers import mlp


class TowerHead(nn.Module):
    """An MLP [width, *layers, 1] over the task's representation.

    Its last bias starts at ``start``, the value of a constant prediction (None: as the other biases).
    """

    def __init__(self, width: int, layers: Sequence[int], start: float | None) -> None:
        super().__init__()
        self.network = mlp([width, *layers, 1], output=True)
        self.start = start

    def finish(self) -> None:
        """Put the output bias at its start, after the random start of all parameters."""
        if self.start is not None and isinstance(last := self.network[-1], nn.Linear):
            last.bias.data.fill_(self.start)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B] of representations [B, width]."""
        logits: Tensor = self.network(x)
        return logits.squeeze(-1)


class DotHead(nn.Module):
    """u·q + a_u + b_i over the summed embeddings of the user's and the item's fields; context is not read.

    ``bias`` holds the first-order terms, one scalar per user and item, which start at zero. ``base`` is a
    constant added for tasks that predict a value; a ranking does not need it.
    """

    bias: Tables | None
    base: nn.Parameter | None

    def __init__(self, shape: Shape, *, bias: bool, start: float | None) -> None:
        super().__init__()
        self.shape, self.start = shape, start
        self.user, self.item = shape.side("user"), shape.side("item")
        ids = [shape.inputs[int(side.start)] for side in (self.user, self.item)]
        self.bias = Tables(ids, dim=1, scale=0.0) if bias else None
        self.base = None if start is None else nn.Parameter(torch.tensor(start))

    def finish(self) -> None:
        """Put the constant at its start, after the random start of all parameters."""
        if self.base is not None and self.start is not None:
            self.base.data.fill_(self.start)

    def forward(self, x: Tensor, negatives: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits [B] of embeddings x [B, F, dim], and [B, n] of each row's user with ``negatives`` [B, n, F_item, dim].

        ``bias`` [B, 2 + n, 1] holds the scalars of the user, the item and the negatives.
        """
        user, item = (pooled(side) for side in self.shape.split(x)[:2])
        positive = (user * item).sum(dim=-1)
        negative = (user[:, None] * pooled(negatives)).sum(dim=-1)
        if bias is not None:
            of_user, of_item, of_negatives = torch.split(bias.squeeze(-1), [1, 1, negative.shape[1]], dim=1)
            positive = positive + (of_user + of_item).squeeze(1)
            negative = negative + of_user + of_negatives
        if self.base is not None:
            positive, negative = positive + self.base, negative + self.base
        return positive, negative
