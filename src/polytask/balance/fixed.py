"""Weights chosen beforehand: linear scalarization."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


class Fixed:
    """The same ``weights`` [T] at every step; a weight of 0 leaves its task untrained."""

    needs: Literal["nothing"] = "nothing"

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = torch.tensor([float(w) for w in weights])

    def weights(self, losses: Tensor) -> Tensor:
        """Weights [T], whatever the losses [T]."""
        return self._weights
