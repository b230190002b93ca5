"""Cosines between gradients, and the small quadratic program behind several balancers."""

import torch
from torch import Tensor

RIDGE = 1e-9
"""What is added to the square of a gradient of norm 1: a part of its own that no other gradient has.

With it repeated, opposed and dependent gradients leave one solution, and weights stay below about 1 / sqrt(RIDGE).
"""

_AT_ONCE = 12
_ROUNDS = 200
_ZERO = 1e-12


def unit(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Norms [n] of the gradients and cosines [n, n] between them; 1 + ``RIDGE`` on the diagonal.

    Norms differ by decades between tasks, cosines do not: what can be solved in cosines is solved in them.
    """
    norms = gramian.diagonal().clamp(min=torch.finfo(gramian.dtype).tiny).sqrt()
    cosines = (gramian / norms / norms[:, None]).clamp(-1, 1)
    return norms, cosines.fill_diagonal_(1 + RIDGE)


def nonnegative(matrix: Tensor, linear: Tensor) -> Tensor:
    """The x >= 0 [k, n] that minimizes x·Mx/2 + q·x, for each row q of ``linear`` [k, n].

    M [n, n] is positive definite, with about 1 on its diagonal. With y = Mx + q the solution has x >= 0, y >= 0, and
    in every place one of them 0. Which one is guessed, x solved for, and wrong guesses turned round: all of
    them at first (Júdice and Pires, 1994), later only the last, which cannot go round in circles (Murty, 1974).
    """
    size = linear.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    q = linear / size
    free = q < 0
    for turn in range(_ROUNDS):
        x = solve_free(matrix, free, -q)
        wrong = torch.where(free, x, x @ matrix + q) < -_ZERO * x.abs().amax(dim=-1, keepdim=True).clamp(min=1)
        if not wrong.any():
            break
        if turn >= _AT_ONCE:
            wrong &= wrong.flip(-1).cumsum(-1).flip(-1) == 1
        free ^= wrong
    return x.clamp(min=0) * size


def solve_free(matrix: Tensor, free: Tensor, right: Tensor) -> Tensor:
    """x [..., n] with Mx = ``right`` [..., n] where ``free`` [..., n], and x = 0 elsewhere."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    system = torch.where(free[..., :, None] & free[..., None, :], matrix, eye)
    x: Tensor = torch.linalg.solve(system, torch.where(free, right, 0.0))
    return x
