"""From a representation to a task's logit: a tower over the body, or an inner product that can be indexed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.nn.bodies.shape import Shape, pooled
from polytask.nn.embedding import Tables
from polytask.nn.layers import mlp

_SHALLOW = 16


class TowerHead(nn.Module):
    """An MLP [width, *layers, outputs] over the task's representation.

    Its last biases [outputs] start at ``start``, a constant prediction (None: as the other biases).
    """

    def __init__(
        self,
        width: int,
        layers: Sequence[int],
        start: Sequence[float] | None,
        *,
        outputs: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = mlp([width, *layers, outputs], output=True, dropout=dropout)
        self.start, self.outputs = start, outputs

    def finish(self) -> None:
        """Put the output biases at their start, after the random start of all parameters."""
        if self.start is not None and isinstance(last := self.network[-1], nn.Linear):
            last.bias.data.copy_(torch.tensor(self.start))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B] of representations [B, width]; [B, outputs] where there are several."""
        logits: Tensor = self.network(x)
        return logits.squeeze(-1) if self.outputs == 1 else logits


class BiasTower(nn.Module):
    """A shallow tower over the fields of the display, such as the position: what of a click it explains alone.

    Its logit b(x) - b(0) [B] is added in training and left out afterwards (Zhao et al., RecSys 2019). Where the
    fields are hidden, x = 0, it adds nothing: those rows keep the rest of the model at what an average display gives.
    """

    def __init__(self, fields: Sequence[int], dim: int) -> None:
        super().__init__()
        self.fields = list(fields)
        self.hidden = mlp([len(self.fields) * dim, _SHALLOW])
        self.output = nn.Linear(_SHALLOW, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B] of embeddings x [B, F, dim], of which only the tower's own fields are read."""
        own = x[:, self.fields].flatten(start_dim=1)
        logits: Tensor = self.output(self.hidden(own) - self.hidden(torch.zeros_like(own[:1])))
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
        """Logits [B] of fields x [B, F, dim], and [B, n] of each row's user with ``negatives`` [B, n, S_item, dim].

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

    def cross(self, x: Tensor, items: Tensor, bias: Tensor | None, item_bias: Tensor | None) -> Tensor:
        """Logits [B, I] of every row's user with every item.

        x [B, F, dim] are the rows' fields, items [I, dim] the items' summed embeddings, bias [B, 2 + n, 1] the
        rows' scalars and item_bias [I] those of the items.
        """
        logits = pooled(self.shape.split(x)[0]) @ items.T
        if bias is not None and item_bias is not None:
            logits = logits + bias[:, :1, 0] + item_bias
        return logits if self.base is None else logits + self.base
