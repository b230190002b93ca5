"""What every balancer offers."""

from typing import Protocol

from torch import Tensor


class Balancer(Protocol):
    """Weights for T tasks, asked for at the start of every epoch."""

    def weights(self) -> Tensor:
        """Weights [T] of the tasks' losses."""
