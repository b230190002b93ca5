"""UPGrad and DualProj: projections onto the dual cone, the directions by which no task loses."""

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State
from polytask.balance.cones import nonnegative, unit


class UpGrad:
    """d = Σ_t π(g_t) / n, π the projection onto {d : d·g_s >= 0 for all s} (Quinton and Rey, 2024).

    No task loses by d, and each counts in proportion to its gradient's norm. Without conflicts, the mean.
    """

    needs: Needs = "gramian"
    scale_heads = False

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Weights [n]: the sum of those of the n projections."""
        count = len(signal.gramian)
        return project(signal.gramian, torch.eye(count, dtype=torch.float64) / count).sum(dim=0), state


class DualProj:
    """d = π(Σ g_t / n), the direction nearest to the mean by which no task loses (Lopez-Paz and Ranzato, 2017).

    One projection where :class:`UpGrad` takes n. Where the mean serves all tasks, it is the mean.
    """

    needs: Needs = "gramian"
    scale_heads = False

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Weights [n] of the projection."""
        count = len(signal.gramian)
        return project(signal.gramian, torch.full((1, count), 1 / count, dtype=torch.float64))[0], state


def project(gramian: Tensor, given: Tensor) -> Tensor:
    """Weights [k, n] of the projections of the k directions with weights ``given`` [k, n] onto the dual cone.

    Jᵀv is the projection of Jᵀu when v minimizes v·Gv over v >= u: to the direction, as little as possible is
    added of the gradients that would lose by it.
    """
    norms, cosines = unit(gramian)
    scaled = given * norms
    return (scaled + nonnegative(cosines, scaled @ cosines)) / norms
