"""Hard sharing: one network below, one tower per task above."""

from collections.abc import Sequence

from torch import Tensor, nn

from polytask.nn.bodies.experts import check_options
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import mlp


class SharedBottom(nn.Module):
    """An MLP over all embeddings, read by every task (Caruana, 1997).

    ``layers`` are the widths of its hidden layers, each followed by ReLU and ``dropout``.
    """

    def __init__(self, shape: Shape, *, layers: Sequence[int] = (128, 64), dropout: float = 0.0) -> None:
        super().__init__()
        check_options("shared_bottom", {}, layers, dropout=dropout)
        self.tasks, self.width = shape.tasks, layers[-1]
        self.network = mlp([shape.width, *layers], dropout=dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        return [self.network(x.flatten(start_dim=1))] * self.tasks
