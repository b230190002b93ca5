"""MoCo and ExcessMTL: weights from what is remembered of every entry of the tasks' gradients, on the dense trunk only.

They remember T numbers for every parameter of the trunk, and none for the tables, which get the same weights.
"""

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State
from polytask.balance.options import check_number

_LEAST = 1e-12


class Moco:
    """Weights for the smallest norm of a combination of gradients that are averaged over steps (Fernando et al., 2023).

    With the step k, y_t ← y_t - beta k^(-1/2) (y_t - g_t L_t / |g_t|), then
    λ ← softmax(λ - gamma k^(-1/2) (Y Yᵀ + rho I) λ). The step is d = Σ λ_t g_t L_t / |g_t|: the weights are those of
    the averages, the gradients those of the batch.
    """

    needs: Needs = "jacobian"
    scale_heads = False
    positive = True

    def __init__(self, *, beta: float = 0.5, gamma: float = 0.1, rho: float = 0.0) -> None:
        check_number("beta", beta, 0.0, 1.0)
        check_number("gamma", gamma, 0.0, 100.0)
        check_number("rho", rho, 0.0, 100.0)
        self.beta, self.gamma, self.rho = beta, gamma, rho

    def start(self, tasks: int) -> State:
        """Averages [T, 0], which are [T, D] from the first step on; λ [T] of 1/T; the number of steps []."""
        return {
            "averages": torch.zeros(tasks, 0, dtype=torch.float64),
            "shares": torch.full((tasks,), 1 / tasks, dtype=torch.float64),
            "steps": torch.zeros((), dtype=torch.float64),
        }

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """λ_t L_t / |g_t| [n]."""
        tasks, jacobian = signal.tasks, signal.jacobian
        assert tasks is not None and jacobian is not None
        steps = state["steps"] + 1
        norms = jacobian.norm(dim=1)
        scale = torch.where(norms > 0, signal.losses / norms.clamp(min=_LEAST), 1.0)  # 1 where the trunk is not read
        averages, shares = grown(state["averages"], jacobian), state["shares"].clone()
        averages[tasks] = torch.lerp(averages[tasks], scale[:, None] * jacobian, self.beta / steps.sqrt())
        now = shares[tasks] / shares[tasks].sum()
        known = averages[tasks]
        slope = known @ (known.T @ now) + self.rho * now
        new = (now - self.gamma / steps.sqrt() * slope).softmax(dim=0)
        shares[tasks] = new * shares[tasks].sum()
        return new * scale, {"averages": averages, "shares": shares, "steps": steps}


class ExcessMtl:
    """More weight for the tasks whose loss is farther above its least (He et al., 2024).

    How far is e_t = Σ g_t² / sqrt(a_t), a_t the sum of the squares of the task's gradients so far, relative to the
    task's first e_t: λ_t ← λ_t exp(eta e_t / e_t(first)), scaled to sum n.
    """

    needs: Needs = "jacobian"
    scale_heads = True

    def __init__(self, *, eta: float = 0.01) -> None:
        check_number("eta", eta, 0.0, 10.0)
        self.eta = eta

    def start(self, tasks: int) -> State:
        """Sums of squares [T, 0], [T, D] from the first step on; first excesses [T] (0: none); λ [T] of 1."""
        return {
            "squares": torch.zeros(tasks, 0, dtype=torch.float64),
            "first": torch.zeros(tasks, dtype=torch.float64),
            "weights": torch.ones(tasks, dtype=torch.float64),
        }

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """λ [n]."""
        tasks, jacobian = signal.tasks, signal.jacobian
        assert tasks is not None and jacobian is not None
        squares, first, weights = grown(state["squares"], jacobian), state["first"].clone(), state["weights"].clone()
        squares[tasks] += jacobian**2
        root = squares[tasks].sqrt()
        excess = torch.where(root > 0, jacobian**2 / root, 0.0).sum(dim=1)
        first[tasks] = torch.where(first[tasks] > 0, first[tasks], excess)
        relative = torch.where(first[tasks] > 0, excess / first[tasks], 1.0)
        raised = (weights[tasks].clamp(min=_LEAST).log() + self.eta * relative).softmax(dim=0)
        weights[tasks] = len(tasks) * raised
        return weights[tasks], {"squares": squares, "first": first, "weights": weights}


def grown(kept: Tensor, jacobian: Tensor) -> Tensor:
    """A copy of what is ``kept`` [T, D]; zeros where it has not the width of the ``jacobian`` [n, D] yet."""
    width = jacobian.shape[1]
    return kept.clone() if kept.shape[1] == width else jacobian.new_zeros(len(kept), width)
