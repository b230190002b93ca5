"""Losses of one logit and one label per row: squared and absolute error, cross-entropy."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.loss.base import Context, Loss, Observed, check_shapes, held_label

_EDGE = 1e-4  # base rates are kept this far from 0 and 1 when they start a bias


def mse(logit: Tensor, label: Tensor) -> Tensor:
    """Squared error (logit - label)^2 of logit [B] and label [B]: [B]; two shapes are a ValueError."""
    check_shapes("mse", logit, label)
    return (logit - label).square()


def huber(logit: Tensor, label: Tensor) -> Tensor:
    """Huber's loss of logit [B] and label [B]: [B]; two shapes are a ValueError.

    e^2 / 2 where the error e is at most 1 in size, else |e| - 1/2 (Huber 1964, delta = 1).
    """
    check_shapes("huber", logit, label)
    return F.huber_loss(logit, label, reduction="none", delta=1.0)


def bce(logit: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy -y log s - (1 - y) log(1 - s), s = sigmoid(logit), of logit [B] and label [B]: [B].

    The label is 0, 1 or a probability; two shapes are a ValueError.
    """
    check_shapes("bce", logit, label)
    return F.binary_cross_entropy_with_logits(logit, label, reduction="none")


def focal(logit: Tensor, label: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """-a (1 - p)^gamma log p of the label's class, a = alpha for positives, 1 - alpha else: [B] (Lin et al. 2017).

    For strong imbalance; its probabilities are not calibrated.
    """
    plain = bce(logit, label)
    weight = label * alpha + (1 - label) * (1 - alpha)
    return weight * (1 - torch.exp(-plain)).pow(gamma) * plain


class Pointwise(nn.Module):
    """A loss made of a formula (logit [B], label [B]) -> [B]; ``probability``: its value is sigmoid(logit).

    A task with a condition learns from the rows where it held, so that its value is p(task | condition).
    """

    outputs = 1

    def __init__(
        self, observed: Observed, *, formula: Callable[[Tensor, Tensor], Tensor], probability: bool = False
    ) -> None:
        super().__init__()
        self.formula, self.probability, self.mean = formula, probability, observed.held.mean

    def target(self, label: Tensor, context: Context) -> Tensor:
        """The label itself; NaN where the task's condition did not hold or is unknown."""
        return held_label(label, context.given_label)

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """The formula [B]."""
        return self.formula(logits, target)

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """The logit, or the probability it stands for."""
        return torch.sigmoid(logits) if self.probability else logits

    def log_probability(self, logits: Tensor, context: Context) -> Tensor:
        """ln sigmoid(logit) [B], for tasks that are conditional on this one."""
        return F.logsigmoid(logits)

    def start(self) -> list[float]:
        """The mean label, or its log-odds."""
        return [log_odds(self.mean) if self.probability else self.mean]


def log_odds(rate: float) -> float:
    """ln(rate / (1 - rate)) of a base rate, kept off 0 and 1."""
    inside = min(max(rate, _EDGE), 1 - _EDGE)
    return math.log(inside / (1 - inside))


def _focal(observed: Observed, *, gamma: float = 2.0, alpha: float = 0.25) -> Pointwise:
    return Pointwise(observed, formula=partial(focal, gamma=gamma, alpha=alpha), probability=True)


def _of(formula: Callable[[Tensor, Tensor], Tensor], probability: bool = False) -> Callable[[Observed], Pointwise]:
    return lambda observed: Pointwise(observed, formula=formula, probability=probability)


POINTWISE: dict[str, Loss] = {
    "mse": Loss(_of(mse), "pointwise", ("regression",)),
    "huber": Loss(_of(huber), "pointwise", ("regression",)),
    "bce": Loss(_of(bce, probability=True), "pointwise", ("binary",)),
    "focal": Loss(_focal, "pointwise", ("binary",)),
}
