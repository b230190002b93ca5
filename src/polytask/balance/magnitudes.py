"""GradNorm, MetaBalance and DB-MTL: weights that even out the norms of the tasks' gradients."""

import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State
from polytask.balance.cones import unit
from polytask.balance.options import check_number, check_whole
from polytask.errors import ConfigError

_LEAST = 1e-6
_TINY = 1e-300


class GradNorm:
    """Weights λ learned so that the tasks train at the same rate (Chen et al., 2018).

    On the last shared parameter, the norms G_t = λ_t |g_t| shall be mean(G) r_t^alpha, where
    r_t = (L_t / L_t(0)) / mean is how much of its first loss a task has left. λ takes a step of ``lr`` down the
    slope of Σ |G_t - mean(G) r_t^alpha| / mean(G), the target held fixed, and is scaled to sum n. The division
    makes ``lr`` mean the same at every scale of the losses.
    """

    needs: Needs = "gramian"
    scale_heads = True
    positive = True

    def __init__(self, *, alpha: float = 1.5, lr: float = 0.025) -> None:
        check_number("alpha", alpha, 0.0, 10.0)
        check_number("lr", lr, 1e-6, 1.0)
        self.alpha, self.lr = alpha, lr

    def start(self, tasks: int) -> State:
        """λ [T] of 1, and first losses [T] (0: none yet)."""
        return {"weights": torch.ones(tasks, dtype=torch.float64), "first": torch.zeros(tasks, dtype=torch.float64)}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """λ [n] before its step."""
        assert signal.tasks is not None and signal.gramians is not None
        tasks, count = signal.tasks, len(signal.losses)
        old, first = state["weights"].clone(), state["first"].clone()
        first[tasks] = torch.where(first[tasks] == 0, signal.losses, first[tasks])
        now = old[tasks] / old[tasks].mean()
        norms = signal.gramians[-1].diagonal().clamp(min=0).sqrt()
        slope = rate_slope(now * norms, norms, signal.losses / first[tasks], self.alpha)
        new = (now - self.lr * slope / (now * norms).mean().clamp(min=_TINY)).clamp(min=_LEAST)
        old[tasks] = new * count / new.sum()
        return now, {"weights": old, "first": first}


def rate_slope(weighted: Tensor, norms: Tensor, left: Tensor, alpha: float) -> Tensor:
    """Slope [n] of Σ |G_t - target_t| in λ: sign(G_t - target_t) |g_t|, for G = λ |g| [n] and losses ``left`` [n]."""
    target = weighted.mean() * (left / left.mean()) ** alpha
    return (weighted - target).sign() * norms


class MetaBalance:
    """On every parameter, each task's gradient is brought near the norm of a target task's (He et al., 2022).

    g_t ← r g_t m_target / m_t + (1 - r) g_t, with m_t the average norm of decay ``beta``: r = 0 leaves the gradients,
    r = 1 makes all norms alike. ``target``: the position of the task that matters, counted from 0 in the order of
    the schema. Before it was ever seen, the mean norm of the others stands for it.
    """

    needs: Needs = "gramian"
    scale_heads = False
    by_parameter = True

    def __init__(self, *, r: float = 0.7, beta: float = 0.9, target: int = 0) -> None:
        check_number("r", r, 0.0, 1.0)
        check_number("beta", beta, 0.0, 0.9999)
        check_whole("target", target, 0)
        self.r, self.beta, self.target = r, beta, target

    def start(self, tasks: int) -> State:
        """Average norms [0, T], which are [P, T] from the first step on, and how often each task was seen [T]."""
        if self.target >= tasks:
            raise ConfigError(f"target = {self.target} must be below {tasks}, the number of tasks; the first is 0")
        return start_norms(0, tasks)

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Weights [P, n]; 1 on a parameter that a task's gradient does not reach."""
        assert signal.gramians is not None
        norms = signal.gramians.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        averages, state = average_norms(norms, signal, state, self.beta)
        seen = state["steps"][self.target]
        if seen > 0:
            aim = state["norms"][:, self.target, None] / (1 - self.beta**seen)
        else:
            aim = averages.mean(dim=1, keepdim=True)
        even = torch.where(averages > 0, aim / averages.clamp(min=_TINY), 1.0)
        return self.r * even + 1 - self.r, state


class DbMtl:
    """The gradients of log L_t, all made as long as the longest (Lin et al., 2023), without their moving average.

    d = max_s |g_s / L_s| Σ g_t / |g_t|.
    """

    needs: Needs = "gramian"
    scale_heads = False
    positive = True

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """max_s |g_s / L_s| / |g_t| [n]."""
        norms, _ = unit(signal.gramian)
        return (norms / signal.losses.clamp(min=_TINY)).max() / norms, state


def start_norms(parameters: int, tasks: int) -> State:
    """The state of :func:`average_norms` before the first step: nothing seen."""
    sizes = {"norms": (parameters, tasks), "steps": (tasks,)}
    return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}


def average_norms(norms: Tensor, signal: Signal, state: State, beta: float) -> tuple[Tensor, State]:
    """Moving averages [P, n] of the ``norms`` [P, n] so far, over the steps a task was present in, and the new state.

    m ← beta m + (1 - beta) |g| from 0, divided by 1 - beta^k after k steps.
    """
    tasks = signal.tasks
    assert tasks is not None
    steps = state["steps"].clone()
    steps[tasks] += 1
    kept = state["norms"]
    sums = kept.clone() if len(kept) == len(norms) else norms.new_zeros(len(norms), kept.shape[1])
    sums[:, tasks] = torch.lerp(norms, sums[:, tasks], beta)
    return sums[:, tasks] / (1 - beta ** steps[tasks]), {"norms": sums, "steps": steps}
