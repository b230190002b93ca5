"""Random weights: what a method has to beat before it has shown anything."""

from torch import Tensor

from polytask.balance import present
from polytask.balance.base import Needs, Signal, State


class Rlw:
    """λ = T softmax(ξ), ξ_t drawn from N(0, 1) anew in every step: random loss weighting (Lin et al., 2022).

    The paper's weights sum to 1; times T they keep the scale of equal weights. One task alone has λ = 1.
    """

    needs: Needs = "losses"
    scale_heads = True
    random = True

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """T softmax(ξ) [T]."""
        drawn = signal.noise.diagonal().double()
        return present.weigh(signal, present.count(signal.present) * present.softmax(drawn, signal.present)), state
