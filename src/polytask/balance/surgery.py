"""PCGrad, GradVac and GradCraft: each task's gradient is changed where it conflicts with others', then all are summed.

A changed gradient is a combination of the given ones, Σ_k M_ik g_k, so a matrix M [n, n] is all that is computed.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State
from polytask.balance.cones import unit
from polytask.balance.magnitudes import average_norms, start_norms
from polytask.balance.options import check_choice, check_number

Order = Literal["random", "fixed"]

_PARALLEL = 0.999  # a target cosine above this would be reached only by far longer gradients
_DEPENDENT = 1e-6


class PcGrad:
    """From each g_i in turn the part against g_j is removed, for all j ≠ i in some order (Yu et al., 2020).

    g_i ← g_i - (g_i·g_j / |g_j|²) g_j where g_i·g_j < 0, with g_j as given; d = Σ g_i. Without conflicts that is the
    plain sum, and for two tasks none loses. ``order``: of the j, ``"random"`` for every i and step, or
    ``"fixed"``, as the schema lists the tasks.
    """

    needs: Needs = "gramian"
    scale_heads = False

    def __init__(self, *, order: Order = "random") -> None:
        check_choice("order", order, get_args(Order))
        self.random = order == "random"

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Column sums [n] of M."""
        gramian = signal.gramian
        changed = torch.eye(len(gramian), dtype=gramian.dtype)
        for others in turns(signal, self.random):
            inner = (changed * gramian[others]).sum(dim=1)
            removed = inner.clamp(max=0) / gramian[others, others]
            _add(changed, others, -removed)
        return changed.sum(dim=0), state


class GradVac:
    """Each g_i is turned to g_j until their cosine is what it is on average, for all j ≠ i (Wang et al., 2021).

    Where φ = cos(g_i, g_j) is below its average φ̂, g_j |g_i| (φ̂ sqrt(1 - φ²) - φ sqrt(1 - φ̂²)) / (|g_j| sqrt(1 - φ̂²))
    is added; then φ̂ ← (1 - beta) φ̂ + beta φ. d = Σ g_i. Targets start at 0, so that the first step is
    :class:`PcGrad`'s. ``order`` as there.
    """

    needs: Needs = "gramian"
    scale_heads = False

    def __init__(self, *, beta: float = 0.5, order: Order = "random") -> None:
        check_number("beta", beta, 0.0, 1.0)
        check_choice("order", order, get_args(Order))
        self.beta = beta
        self.random = order == "random"

    def start(self, tasks: int) -> State:
        """Target cosines [T, T] of 0."""
        return {"targets": torch.zeros(tasks, tasks, dtype=torch.float64)}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Column sums [n] of M."""
        gramian, tasks = signal.gramian, signal.tasks
        assert tasks is not None
        rows = torch.arange(len(gramian))
        norms, _ = unit(gramian)
        targets = state["targets"].clone()
        changed = torch.eye(len(gramian), dtype=gramian.dtype)
        for others in turns(signal, self.random):
            length = ((changed @ gramian) * changed).sum(dim=1).clamp(min=0).sqrt()
            inner = (changed * gramian[others]).sum(dim=1)
            cosine = (inner / (length * norms[others]).clamp(min=torch.finfo(norms.dtype).tiny)).clamp(-1, 1)
            target = targets[tasks, tasks[others]]
            aim = target.clamp(max=_PARALLEL)
            flat = (1 - aim**2).sqrt()
            missing = aim * (1 - cosine**2).sqrt() - cosine * flat
            added = length * missing / (norms[others] * flat)
            _add(changed, others, torch.where(cosine < aim, added, 0.0))
            seen = torch.lerp(target, cosine, self.beta)
            targets[tasks, tasks[others]] = torch.where(others == rows, target, seen)
        return changed.sum(dim=0), {"targets": targets}


def turns(signal: Signal, random: bool) -> Tensor:
    """Which task [n, n] each task meets in each turn: every task once, itself included."""
    count = len(signal.noise)
    return signal.noise.argsort(dim=1).T if random else torch.arange(count)[:, None].expand(-1, count)


def _add(changed: Tensor, others: Tensor, much: Tensor) -> None:
    """Add ``much`` [n] of the gradients ``others`` [n] to the rows of ``changed`` [n, n], in place; none to itself."""
    much = torch.where(others == torch.arange(len(others)), 0.0, much)
    changed.scatter_add_(1, others[:, None], much[:, None])


class GradCraft:
    """Norms are evened out, then each gradient is freed of all its conflicts at once (Bai et al., 2024).

    First g_t ← tau g_t max_s m_s / m_t + (1 - tau) g_t, with m_t the average norm of decay ``beta``. Then to each g_t
    the combination of the g_j with g_t·g_j < 0 is added after which every cos(g_t, g_j) would be ``epsilon`` at g_t's
    former length. d is the mean. The defaults are those of the authors' code.
    """

    needs: Needs = "gramian"
    scale_heads = False

    def __init__(self, *, tau: float = 1.0, epsilon: float = 0.0, beta: float = 0.0) -> None:
        check_number("tau", tau, 0.0, 1.0)
        check_number("epsilon", epsilon, 0.0, 0.1)
        check_number("beta", beta, 0.0, 0.9999)
        self.tau, self.epsilon, self.beta = tau, epsilon, beta

    def start(self, tasks: int) -> State:
        """Average norms [1, T] and how often each task was seen [T]."""
        return start_norms(1, tasks)

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Column means [n] of M."""
        norms, cosines = unit(signal.gramian)
        averages, state = average_norms(norms[None], signal, state, self.beta)
        lengths = norms * (self.tau * averages[0].max() / averages[0] + 1 - self.tau)
        against = cosines < 0
        eye = torch.eye(len(norms), dtype=norms.dtype)
        system = torch.where(against[:, :, None] & against[:, None, :], cosines, eye)
        missing = torch.where(against, self.epsilon - cosines, 0.0)
        inverse = torch.linalg.pinv(system, rtol=_DEPENDENT, hermitian=True)
        changed = eye + (inverse @ missing[:, :, None])[:, :, 0]
        return lengths @ changed / norms / len(norms), state
