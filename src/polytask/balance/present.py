"""Sums over the tasks that are present, and weights that leave the others alone."""

import torch
from torch import Tensor

from polytask.balance.base import Signal


def losses(signal: Signal) -> Tensor:
    """Losses [T] in float64; 1 for a task that is absent, so that no formula fails on it."""
    return torch.where(signal.present, signal.losses.double(), 1.0)


def count(present: Tensor) -> Tensor:
    """How many tasks are present [], at least 1."""
    return present.double().sum(dim=0).clamp(min=1.0)


def total(values: Tensor, present: Tensor) -> Tensor:
    """Sum [] of ``values`` [T] over the tasks that are present."""
    return torch.where(present, values, 0.0).sum(dim=0)


def softmax(values: Tensor, present: Tensor) -> Tensor:
    """Shares [T] over the tasks that are present, and 0 for the others; their ``values`` [T] must be finite."""
    highest = torch.where(present, values, -torch.inf).amax(dim=0)
    raised = torch.where(present, (values - highest).exp(), 0.0)
    return raised / raised.sum(dim=0).clamp(min=1.0)


def weigh(signal: Signal, weights: Tensor, wrong: Tensor | None = None) -> Tensor:
    """Weights [T] as a balancer gives them: in the losses' type, 0 for absent tasks.

    NaN where a loss is ``wrong`` [T]: a traced program cannot raise, so this is how the trainer hears of it.
    """
    found = weights if wrong is None else torch.where(wrong, torch.nan, weights)
    return torch.where(signal.present, found, 0.0).to(signal.losses.dtype)
