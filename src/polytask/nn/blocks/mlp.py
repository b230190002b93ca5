"""A plain network below any body."""

from collections.abc import Sequence

from torch import Tensor, nn

from polytask.errors import ConfigError
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import mlp
from polytask.schema import Input


class Mlp(nn.Module):
    """An MLP over all embeddings, whose output is the one field the body reads.

    ``layers`` are the widths of its hidden layers, each followed by ReLU and ``dropout``. Under a body with
    experts it is the shared hidden layer that gates read in place of raw features (Zhao et al., RecSys 2019).
    """

    def __init__(self, shape: Shape, *, layers: Sequence[int] = (128,), dropout: float = 0.0) -> None:
        super().__init__()
        if not layers or min(layers) < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                f"block 'mlp': layers = {list(layers)} must be one or more widths of at least 1, dropout = {dropout} "
                "at least 0 and below 1"
            )
        self.shape = Shape((Input("mlp", "number", "context", 1),), layers[-1], shape.tasks, shape.names)
        self.network = mlp([shape.width, *layers], dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The one field [B, 1, layers[-1]] of embeddings [B, F, dim]."""
        hidden: Tensor = self.network(x.flatten(start_dim=1))
        return hidden[:, None]
