"""CAGrad: near the mean gradient, the step that is best for the task it serves least."""

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State
from polytask.balance.cones import nonnegative, solve_free, unit
from polytask.balance.options import check_number

_EXACT = 1e-6
_ROUNDS = 80


class CaGrad:
    """Within c |g_0| of the mean gradient g_0, the direction d with the largest min_t d·g_t (Liu et al., 2021).

    That is d = g_0 + c |g_0| g_w / |g_w| with g_w = Σ w_t g_t, w on the simplex the minimizer of
    g_w·g_0 + c |g_0| |g_w|. ``c`` from 0 (the mean) to below 1, so that training ends where the mean loss does.
    The length is the paper's; the authors' code also divides by 1 + c².
    """

    needs: Needs = "gramian"
    scale_heads = False

    def __init__(self, *, c: float = 0.5) -> None:
        check_number("c", c, 0.0, 0.99)
        self.c = c

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Weights [n]: 1/n, and those of the correction of norm c |g_0|."""
        norms, cosines = unit(signal.gramian)
        size = norms.max()
        mean = norms / size / len(norms)
        radius = self.c * (mean @ cosines @ mean).sqrt()
        extra = _lift(norms / size, cosines, radius) if radius > 0 else torch.zeros_like(norms)
        return (mean + extra) * size / norms, state


def _lift(norms: Tensor, cosines: Tensor, radius: Tensor) -> Tensor:
    """Weights [n] of the unit gradients in the correction of norm ``radius`` that raises min_t d·g_t the most.

    The d nearest to g_0 with d·g_t >= floor for all t moves away from g_0 as the floor rises. The square of its
    distance is a parabola in the floor while the same tasks hold it up, so the floor that leads to ``radius`` is
    found by solving the parabola at hand, and by halving the bracket where the solution lies outside.
    """
    mean = cosines @ norms / len(norms)  # g_0·g_t / |g_t|
    low, high = (mean * norms).min(), ((mean + radius) * norms).min()
    floor = high
    for _ in range(_ROUNDS):
        x = nonnegative(cosines, (mean - floor / norms)[None])[0]
        moved = cosines @ x
        excess = x @ moved - radius**2
        if excess.abs() <= _EXACT * radius**2:
            break
        low, high = (low, floor) if excess > 0 else (floor, high)
        slope = solve_free(cosines, x > 0, 1 / norms)
        half, square = slope @ moved, slope @ cosines @ slope
        floor = floor - excess / (half + (half**2 - square * excess).clamp(min=0).sqrt())
        if not low < floor < high:
            floor = (low + high) / 2
    return x
