"""Prototypes: what kind of row this is, as one more feature."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import ConfigError
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Draw, fill
from polytask.schema import Input


class Prototypes(nn.Module):
    """PFE: prototype features (Xin et al., WWW 2022), after a summary; no constant is verified against the paper.

    With v the joined embeddings, normalized to mean 0 and variance 1, and the centers c_1..c_K:

        responsibilities  r_k = softmax_k(-|v - c_k|² / (D τ))        (E-step; K = ``prototypes``, τ = ``temperature``)
        one more field    W Σ_k r_k c_k                               (W from D numbers to dim)
        penalty           mean over rows of Σ_k r_k |v - c_k|² / D    (with r and v held fixed)

    The penalty's gradient is zero where each center is the mean of the rows weighted by its responsibilities: it is
    the M-step, taken by the optimizer. The paper moves the centers within the forward pass, a state that stacked
    and exported models must not have. Nothing else moves the centers, so the penalty needs no weight. Normalizing
    and dividing by D = F · dim keep one temperature fit for embeddings of any size.
    """

    penalty: Tensor | None = None

    def __init__(self, shape: Shape, *, prototypes: int = 8, temperature: float = 0.1) -> None:
        super().__init__()
        if prototypes < 1 or not temperature > 0:
            raise ConfigError(
                f"block 'pfe': prototypes = {prototypes} must be at least 1, temperature = {temperature} above 0"
            )
        added = Input("prototype", "number", "context", 1)
        self.shape = Shape((*shape.inputs, added), shape.dim, shape.tasks, shape.names)
        self.temperature = temperature
        self.centers = nn.Parameter(torch.zeros(prototypes, shape.width))
        self.field = nn.Linear(shape.width, shape.dim)

    def initialize(self, name: str, draw: Draw) -> None:
        """Centers from N(0, 1), the spread of the normalized input."""
        fill(self.centers, draw(f"{name}.centers").standard_normal(self.centers.shape))

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings [B, F + 1, dim] of embeddings [B, F, dim]."""
        v = F.layer_norm(x.flatten(start_dim=1), [self.centers.shape[1]])
        centers = self.centers.detach()
        shares = torch.softmax(-_distances(v, centers) / self.temperature, dim=-1)
        moved = (shares.detach() * _distances(v.detach(), self.centers)).sum(dim=-1).mean() if self.training else None
        self.penalty = moved
        return torch.cat([x, self.field(shares @ centers)[:, None]], dim=1)


def _distances(v: Tensor, centers: Tensor) -> Tensor:
    """Squared distances [B, K] of rows v [B, D] to the centers [K, D], by dimension."""
    return (v[:, None] - centers).square().mean(dim=-1)
