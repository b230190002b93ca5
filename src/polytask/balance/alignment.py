"""IMTL-G, ConFIG and Aligned-MTL: a step that lies to all tasks alike."""

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State
from polytask.balance.cones import unit

_CANCELED = 1e-3


class ImtlG:
    """Σ α_t = 1 and d = Σ α_t g_t with the same projection d·g_t / |g_t| on every gradient (Liu et al., 2021).

    α may be negative. Where Σ α_t = 1 would make every task lose, d is turned round; where the α nearly cancel,
    Σ |α_t| stays below 1000.
    """

    needs: Needs = "gramian"
    scale_heads = False

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """α [n]."""
        norms, cosines = unit(signal.gramian)
        found = _bisector(cosines) * norms.min() / norms
        return found / torch.maximum(found.sum().abs(), _CANCELED * found.abs().sum()), state


class ConFig:
    """The direction of :class:`ImtlG`, with the sum of the gradients' projections on it for length (Liu et al., 2024).

    No task loses by it.
    """

    needs: Needs = "gramian"
    scale_heads = False

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Weights [n]."""
        norms, cosines = unit(signal.gramian)
        found = _bisector(cosines)
        return found / found.sum() * norms.sum() / norms, state


def _bisector(cosines: Tensor) -> Tensor:
    """u [n] with Σ u_s cos(s, t) = 1 for all t; Σ u_t is the square of the direction's norm."""
    u: Tensor = torch.linalg.solve(cosines, torch.ones(len(cosines), dtype=cosines.dtype))
    return u


class AlignedMtl:
    """The mean gradient after the principal directions of J are made equally long (Senushkin et al., 2023).

    w = sqrt(λ_r) V Λ^(-1/2) Vᵀ 1/n with G = V Λ Vᵀ of rank r: each of the r directions that the gradients span gets the
    length of the shortest. No weight is above 1 / sqrt(n), however much larger the other gradients are.
    """

    needs: Needs = "gramian"
    scale_heads = False

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Weights [n]."""
        from torchjd.aggregation import AlignedMTLWeighting  # slow to import

        return AlignedMTLWeighting()(signal.gramian), state
