"""MGDA: the shortest vector between the tasks' gradients."""

from typing import Literal, get_args

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State
from polytask.balance.cones import nonnegative, unit
from polytask.balance.options import check_choice

Measure = Literal["none", "l2", "loss", "loss+"]


class Mgda:
    """d = Σ α_t g_t with α on the simplex the minimizer of |Σ α_t g_t| (Désidéri, 2012; Sener and Koltun, 2018).

    No task loses by d: d·g_t >= |d|² for all t, and d = 0 where no step serves all. Tasks with small gradients
    dominate; ``normalize`` first divides g_t by its norm (``"l2"``), its loss (``"loss"``) or both (``"loss+"``).
    The weights on the gradients as they are sum to 1 in any case.
    """

    needs: Needs = "gramian"
    scale_heads = False

    def __init__(self, *, normalize: Measure = "none") -> None:
        check_choice("normalize", normalize, get_args(Measure))
        self.normalize = normalize
        self.positive = normalize in ("loss", "loss+")

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """α [n], divided by what the gradients were divided by."""
        norms, cosines = unit(signal.gramian)
        measure = torch.ones_like(norms)
        if self.normalize in ("l2", "loss+"):
            measure = measure * norms
        if self.normalize in ("loss", "loss+"):
            measure = measure * signal.losses
        found = shortest(norms / measure, cosines) / measure
        return found / found.sum(), state


def shortest(norms: Tensor, cosines: Tensor) -> Tensor:
    """α [n] >= 0 with sum 1 that minimizes |Σ α_t g_t|², for gradients of ``norms`` [n] and ``cosines`` [n, n].

    Where |Σ x_t g_t|² + (Σ x_t - 1)² is least over x >= 0, x is a multiple of α: among the multiples s α
    the least value is v / (1 + v), which grows with v = |Σ α_t g_t|².
    """
    norms = norms / norms.min()
    shrink = 1 / (norms**2 + 1).sqrt()  # makes the diagonal 1
    matrix = cosines * torch.outer(norms * shrink, norms * shrink) + torch.outer(shrink, shrink)
    x = nonnegative(matrix, -shrink[None])[0] * shrink
    return x / x.sum()
