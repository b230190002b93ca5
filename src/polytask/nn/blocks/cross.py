"""Products of features, of bounded degree."""

from torch import Tensor, nn

from polytask.errors import ConfigError
from polytask.nn.bodies.shape import Shape


class Cross(nn.Module):
    """The cross network of DCN-v2 (Wang et al., WWW 2021, eq. 1): x_{l+1} = x_0 ∘ (W x_l + b) + x_l.

    x_0 are the joined embeddings; after ``layers`` layers (a number) the output holds products of up to
    layers + 1 of them, in the same shape. With ``rank`` each W is a product U Vᵀ of that rank (eq. 2);
    0 means a full matrix.
    """

    def __init__(self, shape: Shape, *, layers: int = 2, rank: int = 0) -> None:
        super().__init__()
        if layers < 1 or rank < 0:
            raise ConfigError(f"block 'cross': layers = {layers} must be at least 1, rank = {rank} at least 0")
        self.shape = shape
        self.layers = nn.ModuleList(_linear(shape.width, rank) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings [B, F, dim] of embeddings [B, F, dim]."""
        first = crossed = x.flatten(start_dim=1)
        for layer in self.layers:
            crossed = first * layer(crossed) + crossed
        return crossed.view_as(x)


def _linear(width: int, rank: int) -> nn.Module:
    if not rank:
        return nn.Linear(width, width)
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
