"""What every balancer offers."""

from typing import Literal, Protocol

from torch import Tensor


class Balancer(Protocol):
    """Weights for T tasks. ``needs`` says from what: nothing at all, or the step's losses."""

    needs: Literal["nothing", "losses"]

    def weights(self, losses: Tensor) -> Tensor:
        """Weights [T] for the losses [T] of a step."""
