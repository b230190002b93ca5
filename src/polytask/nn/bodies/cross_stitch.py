"""A network per task, and after every layer a learned mixture of what the networks know."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import ConfigError
from polytask.nn.bodies.experts import check_options
from polytask.nn.bodies.shape import Shape
from polytask.nn.layers import Draw, ExpertLinear, dropouts


class CrossStitch(nn.Module):
    """Cross-stitch networks (Misra et al., CVPR 2016, eq. 1), with one matrix A per layer.

        x_t = ReLU(W_t x̃_t + b_t)      x̃_t = Σ_s A_ts x_s      after each of the ``layers``, for each task t

    A starts with ``kept`` on its diagonal and (1 − kept) / (T − 1) beside it, so that a task starts with what is
    mostly its own; a single task keeps all. It learns at ``rate`` times the learning rate, as the paper advises
    (10² to 10³): the parameter is the offset from the start divided by ``rate``, which is exact for Adam; plain
    gradient descent sees rate². Weight decay pulls A to its start. The paper starts from trained single-task
    networks; here all is trained together. ``dropout`` follows every ReLU.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        layers: Sequence[int] = (128, 64),
        kept: float = 0.9,
        rate: float = 100.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options("cross_stitch", {}, layers, dropout=dropout)
        if not 0 <= kept <= 1 or rate <= 0:
            raise ConfigError(f"body 'cross_stitch': kept = {kept} must be in [0, 1] and rate = {rate} above 0")
        self.width = layers[-1]
        self.layers = nn.ModuleList(ExpertLinear(shape.tasks, a, b) for a, b in pairwise([shape.width, *layers]))
        self.dropouts = dropouts([shape.tasks * width for width in layers], dropout)
        self.mixing = nn.ModuleList(Mixing(diagonal(shape.tasks, kept), rate) for _ in layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Representations, T times [B, width], of embeddings [B, F, dim]."""
        v = x.flatten(start_dim=1)
        for layer, dropout, mixing in zip(self.layers, self.dropouts, self.mixing, strict=True):
            v = torch.einsum("ts,bsh->bth", mixing(), dropout(F.relu(layer(v))))
        return list(v.unbind(dim=1))


class Mixing(nn.Module):
    """A matrix that starts at ``start`` and learns ``rate`` times as fast as other parameters under Adam."""

    start: Tensor

    def __init__(self, start: Tensor, rate: float = 1.0) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("start", start, persistent=False)
        self.offset = nn.Parameter(torch.zeros_like(start))

    def initialize(self, name: str, draw: Draw) -> None:
        """Start at ``start``: nothing is drawn."""
        self.offset.data.zero_()

    def forward(self) -> Tensor:
        """The matrix, of the shape of ``start``."""
        return self.start + self.rate * self.offset


def diagonal(streams: int, kept: float) -> Tensor:
    """[streams, streams] with ``kept`` on the diagonal and rows that sum to 1; [[1]] for a single stream."""
    if streams == 1:
        return torch.ones(1, 1)
    return torch.full((streams, streams), (1 - kept) / (streams - 1)).fill_diagonal_(kept)
