"""IMTL-G, ConFIG and Aligned-MTL: a step that lies to all tasks alike."""

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State
from polytask.balance.cones import unit

_DEPENDENT = 1e-8  # an eigenvalue of the cosines that is not above this stands for no direction of its own
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
    return torch.linalg.solve(cosines, torch.ones(len(cosines), dtype=cosines.dtype))


class AlignedMtl:
    """The mean gradient after the principal directions of J = U Σ Vᵀ are made equally long (Senushkin et al., 2023).

    w = B 1/n with B = σ_r V Λ^(-1/2) Vᵀ, G = V Λ Vᵀ: every direction gets the length σ_r of the shortest of
    the r directions that the gradients span. No task's weight is above 1 / sqrt(n), however large another's gradient.
    """

    needs: Needs = "gramian"
    scale_heads = False

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Weights [n]."""
        gramian = signal.gramian
        _, cosines = unit(gramian)
        squares, directions = torch.linalg.eigh(gramian)  # ascending
        # in cosines, since a gradient that is small beside another is not for that dependent
        rank = int((torch.linalg.eigvalsh(cosines) > _DEPENDENT).sum())
        least = len(gramian) * torch.finfo(gramian.dtype).eps * squares[-1]
        kept = squares[-rank:] > least
        squares, directions = squares[-rank:][kept], directions[:, -rank:][:, kept]
        shares = directions.mean(dim=0) * (squares[0] / squares).sqrt()
        return directions @ shares, state
