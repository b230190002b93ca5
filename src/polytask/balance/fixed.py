"""Weights chosen beforehand: linear scalarization, and weights that grow or shrink by the epoch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.balance import present
from polytask.balance.base import Needs, Signal, State
from polytask.balance.options import check_count, check_number, each


class Fixed:
    """λ_t = 1: the tasks' own weights and nothing else; a weight of 0 leaves its task untrained.

    Also with one task.
    """

    needs: Needs = "losses"
    scale_heads = True
    constant = True

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Ones [T]: the losses carry the weights already."""
        return present.weigh(signal, torch.ones_like(signal.losses)), state


class Unitary:
    """The plain sum of the losses, whatever weights above 0 the tasks have (Kurin et al., 2022).

    ``unitary`` tells the training to take 1 for every own weight above 0. Also with one task.
    """

    needs: Needs = "losses"
    scale_heads = True
    constant = True
    unitary = True

    def start(self, tasks: int) -> State:
        """Nothing is remembered."""
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """Ones [T]."""
        return present.weigh(signal, torch.ones_like(signal.losses)), state


class Schedule:
    """λ_t = γ_t^(epoch − 1), so that the weight in all is ω_t γ_t^(epoch − 1), PLE's schedule (Tang et al., 2020).

    ω_t is the task's own weight, which holds in the first epoch. ``gamma`` is one number for all tasks or one each.
    One task alone is trained with a loss that grows or shrinks.
    """

    needs: Needs = "losses"
    scale_heads = True

    def __init__(self, *, gamma: float | Sequence[float] = 1.0) -> None:
        self.gamma = each(gamma)
        for value in self.gamma:
            check_number("gamma", value, 0.001, 1000.0)

    def start(self, tasks: int) -> State:
        """Nothing is remembered; as many ``gamma`` as tasks, or it is a :class:`ConfigError`."""
        check_count("gamma", self.gamma, tasks)
        return {}

    def weights(self, signal: Signal, state: State) -> tuple[Tensor, State]:
        """γ_t^(epoch − 1) [T]."""
        gamma = torch.tensor(self.gamma, dtype=torch.float64, device=signal.losses.device)
        return present.weigh(signal, gamma ** (signal.epoch - 1)), state
