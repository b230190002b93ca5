"""Weights chosen beforehand: linear scalarization."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Fixed:
    """The same ``weights`` [T] throughout; a weight of 0 leaves its task untrained."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = torch.tensor([float(w) for w in weights])

    def weights(self) -> Tensor:
        """Weights [T] of the tasks' losses."""
        return self._weights
