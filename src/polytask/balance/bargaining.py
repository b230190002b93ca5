"""Nash-MTL and FairGrad: the tasks bargain over a step, and none is left out."""

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State
from polytask.balance.cones import unit
from polytask.balance.options import check_number

_NEAR = 1e-4  # relative step after which the error is about its square
_ROUNDS = 100
_HALVINGS = 40


class NashMtl:
    """α_t (d·g_t) = 1 with d = Σ α_t g_t, α > 0: the Nash bargaining solution (Navon et al., 2022).

    Scaling a task's loss changes nothing. d has norm sqrt(n), and is shortened to ``max_norm`` where that is less,
    α with it; ``max_norm = inf`` leaves both as they are. Near a point where no step serves all tasks α grows; it
    stays below about 30000 / |g_t|.
    """

    needs: Needs = "gramian"
    scale_heads = True

    def __init__(self, *, max_norm: float = 1.0) -> None:
        check_number("max_norm", max_norm, 1e-6)
        self.max_norm = max_norm

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """α [n], shortened."""
        found = bargain(signal.gramian, 1.0)
        norm = (found @ signal.gramian @ found).clamp(min=0).sqrt()
        return found / (norm / self.max_norm).clamp(min=1), state


class FairGrad:
    """d·g_t = α_t^(-1/a) with d = Σ α_t g_t, α > 0: the α-fair step (Ban and Ji, 2024).

    ``a`` = 1 is :class:`NashMtl` without its bound on the norm; the larger, the more the step favors the tasks it
    serves least.
    """

    needs: Needs = "gramian"
    scale_heads = True

    def __init__(self, *, a: float = 1.0) -> None:
        check_number("a", a, 0.5, 10.0)
        self.a = a

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """α [n]."""
        return bargain(signal.gramian, self.a), state


def bargain(gramian: Tensor, a: float) -> Tensor:
    """α [n] > 0 with Gα = α^(-1/a), where the convex α·Gα/2 - Σ ∫ α_t^(-1/a) is least, by damped Newton steps.

    In β = α |g_t|^(2a / (a + 1)), which is 1 where gradients are orthogonal, the condition is C(rβ) = r β^(-1/a) with
    the cosines C and r = |g_t|^((1 - a) / (1 + a)).
    """
    norms, cosines = unit(gramian)
    power = 1 / a
    r = norms ** ((1 - a) / (1 + a))
    r = r / r.max()
    beta = torch.ones_like(norms)
    short = cosines @ r - r
    for _ in range(_ROUNDS):
        hessian = cosines + torch.diag(power * beta ** (-power - 1))
        step = -torch.linalg.solve(hessian, short) / r
        slope = (r * short) @ step
        if (step / beta).abs().max() < _NEAR:
            break
        size = (0.9 / (-step / beta).max().clamp(min=0.9)).item()  # β stays above 0
        for _ in range(_HALVINGS):
            short = cosines @ (r * (beta + size * step)) - r * (beta + size * step) ** -power
            if (r * short) @ step <= -slope / 2:  # else far beyond the least value along the step
                break
            size /= 2
        beta = beta + size * step
    found: Tensor = (beta + step).clamp(min=0.1 * beta) * norms ** (-2 * a / (a + 1))
    return found
