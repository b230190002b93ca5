"""A few features that must not drown get a hand on all others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import ConfigError, did_you_mean
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import mlp


class Poso(nn.Module):
    """POSO (Dai et al., 2021): x ∘ C σ(G(pc)), a gate on every embedded number that reads the personal code alone.

    pc are the fields named in ``code``, such as ``["is_new"]``: few, and only those whose effect is lost among the
    rest because most rows have the same value. G is an MLP with hidden ``layers``. C = 2 keeps the scale, as σ is
    about ½ at first. The paper gates the outputs of a network's layers; here the gate stands before the network
    and serves any body.
    """

    SCALE = 2.0

    def __init__(self, shape: Shape, *, code: Sequence[str] = (), layers: Sequence[int] = (32,)) -> None:
        super().__init__()
        names = [i.name for i in shape.inputs]
        if not code:
            raise ConfigError(f"block 'poso' needs the fields its gates read: code = [...]; known: {', '.join(names)}")
        for name in code:
            if name not in names:
                raise ConfigError("block 'poso': " + did_you_mean("field", name, names))
        if min(layers, default=1) < 1:
            raise ConfigError(f"block 'poso': layers = {list(layers)}: every width must be at least 1")
        self.shape = shape
        self.code = [names.index(name) for name in code]
        self.network = mlp([len(self.code) * shape.dim, *layers, shape.width], output=True)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings [B, F, dim] of embeddings [B, F, dim]."""
        code = torch.cat([x[:, field] for field in self.code], dim=-1)
        return x * self.SCALE * torch.sigmoid(self.network(code)).view_as(x)
