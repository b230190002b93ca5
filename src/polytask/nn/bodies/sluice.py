"""A network per task whose layers share by halves, and outputs that choose among the layers."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import ConfigError
from polytask.nn.bodies.cross_stitch import Mixing, diagonal
from polytask.nn.bodies.experts import check_options
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import ExpertLinear, dropouts


class Sluice(nn.Module):
    """Sluice networks (Ruder et al., AAAI 2019; first version 2017).

    A layer l of task t computes two subspaces, the halves of its outputs: G_tl1 and G_tl2 are its weights
    [inputs, h/2]. All 2T subspaces of a layer are mixed, and a task reads a mixture of all layers:

        [x_t1; x_t2] = ReLU([G_tl1; G_tl2] x̃_t^(l−1))    x̃_u^l = Σ_v α^l_uv x_v over all 2T    y_t = Σ_l β_tl x̃_t^l
        penalty = ``orthogonality`` · Σ_t,l ‖G_tl1ᵀ G_tl2‖²_F

    α starts with ``kept`` on its diagonal, so that subspaces start apart; α all equal would start every task with the
    same input. β starts with 0.9 on the last layer. ``layers`` are the hidden widths, all equal for the sum over layers
    and even, each layer followed by ReLU and ``dropout``. The layers are those of an MLP, where the paper has LSTMs.
    """

    penalty: Tensor | None = None

    def __init__(
        self,
        shape: Shape,
        *,
        layers: Sequence[int] = (64, 64),
        kept: float = 0.9,
        orthogonality: float = 0.01,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not layers or len(set(layers)) > 1 or layers[0] < 2 or layers[0] % 2:
            raise ConfigError(
                f"body 'sluice': layers = {list(layers)} must be one or more equal and even widths: halves are "
                f"mixed, and layers summed"
            )
        if not 0 <= kept <= 1 or orthogonality < 0:
            raise ConfigError(
                f"body 'sluice': kept = {kept} must be in [0, 1] and orthogonality = {orthogonality} at least 0"
            )
        check_options("sluice", {}, layers, dropout=dropout)
        self.tasks, self.width, self.orthogonality = shape.tasks, layers[-1], orthogonality
        self.layers = nn.ModuleList(ExpertLinear(shape.tasks, a, b) for a, b in pairwise([shape.width, *layers]))
        self.dropouts = dropouts([shape.tasks * width for width in layers], dropout)
        self.alpha = nn.ModuleList(Mixing(diagonal(2 * shape.tasks, kept)) for _ in layers)
        self.beta = Mixing(diagonal(len(layers), 0.9)[-1:].repeat(shape.tasks, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        v, found = x.flatten(start_dim=1), []
        for layer, dropout, alpha in zip(self.layers, self.dropouts, self.alpha, strict=True):
            subspaces = dropout(F.relu(layer(v))).reshape(x.shape[0], 2 * self.tasks, -1)
            v = torch.einsum("uv,bvh->buh", alpha(), subspaces).reshape(x.shape[0], self.tasks, -1)
            found.append(v)
        if self.training:
            overlaps = [overlap(layer.weight) for layer in self.layers if isinstance(layer, ExpertLinear)]
            self.penalty = self.orthogonality * torch.stack(overlaps).sum()
        return list(torch.einsum("tl,lbth->tbh", self.beta(), torch.stack(found)).unbind(dim=0))


def overlap(weight: Tensor) -> Tensor:
    """Σ_t ‖G_t1ᵀ G_t2‖²_F of the halves of weights [T, inputs, h]."""
    first, second = weight.chunk(2, dim=-1)
    return torch.einsum("tia,tib->tab", first, second).square().sum()
