"""One number per task that a balancer learns by an Adam of its own (Kingma and Ba, 2015), without weight decay."""

import torch
from torch import Tensor

from polytask.balance.base import State

_FIRST, _EPSILON = 0.9, 1e-8


def start(tasks: int) -> State:
    """Values of 0 [T] and what Adam keeps of their gradients; a task has its own number of steps."""
    return {name: torch.zeros(tasks, dtype=torch.float64) for name in ("value", "first", "second", "steps")}


def step(state: State, slope: Tensor, moved: Tensor, lr: float, second_decay: float = 0.999) -> State:
    """One step against ``slope`` [T] for the tasks that are ``moved`` [T]; nothing changes for the others.

    ``second_decay`` is β₂, the decay of the mean square of the slope; β₁ is 0.9.
    """
    steps = state["steps"] + 1
    first = torch.lerp(slope, state["first"], _FIRST)
    second = torch.lerp(slope.square(), state["second"], second_decay)
    size = (second / (1 - second_decay**steps)).sqrt() + _EPSILON
    value = state["value"] - lr * first / (1 - _FIRST**steps) / size
    new = {"value": value, "first": first, "second": second, "steps": steps}
    return {name: torch.where(moved, new[name], state[name]) for name in state}
