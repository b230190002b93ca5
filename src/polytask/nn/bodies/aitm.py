"""Tasks in a sequence, each of which is told what the one before it found."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.nn.bodies.experts import check_options
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Experts, mixture


class Aitm(nn.Module):
    """AITM: adaptive information transfer along the order of the tasks (Xi et al., KDD 2021, eq. 2 to 5).

        q_t = MLP_t(x)      z_1 = q_1      p_t = ReLU(V_t z_(t−1))      z_t = attention({p_t, q_t})  for t ≥ 2

    The tasks' order is the one they are listed in: such as impression, click, conversion. ``layers`` are the hidden
    widths of a task's MLP, each layer followed by ``dropout``. V_t with ReLU is the authors' code; the paper leaves its
    form open. The paper's calibrator, a penalty on a later task that is more probable than an earlier one, belongs to
    the loss.
    """

    def __init__(self, shape: Shape, *, layers: Sequence[int] = (128, 64, 32), dropout: float = 0.0) -> None:
        super().__init__()
        check_options("aitm", {}, layers, dropout=dropout)
        self.width = layers[-1]
        self.bottoms = Experts(shape.tasks, [shape.width, *layers], dropout)
        self.transfers = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(shape.tasks - 1))
        self.attention = Attention(self.width) if shape.tasks > 1 else None

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        first, *later = self.bottoms(x.flatten(start_dim=1)).unbind(dim=1)
        z = [first]
        for q, transfer in zip(later, self.transfers, strict=True):
            assert self.attention is not None
            z.append(self.attention(torch.stack([F.relu(transfer(z[-1])), q], dim=1)))
        return z


class Attention(nn.Module):
    """Σ_u w_u h1(u) with w = softmax_u(⟨h2(u), h3(u)⟩ / √h): each vector u is weighed by itself alone.

    h1, h2 and h3 are linear maps without a bias, the same for all tasks.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.h1, self.h2, self.h3 = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, u: Tensor) -> Tensor:
        """One vector [B, h] of several u [B, n, h]."""
        scores = (self.h2(u) * self.h3(u)).sum(dim=-1) / u.shape[-1] ** 0.5
        return mixture(torch.softmax(scores, dim=-1), self.h1(u))
