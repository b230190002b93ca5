"""Losses: pure functions of logits and labels, and their mean over the rows that have a label.

A pointwise loss compares one logit with one label per row; a pairwise loss compares the logit of an observed
item with those of sampled ones. No function looks at values, so all work under ``torch.func.vmap`` and tracing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.errors import ConfigError, did_you_mean
from polytask.schema import Task, TaskKind


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name: its formula, the kinds of task it fits, and how a logit becomes the task's value.

    ``function``: pointwise (logit [B], label [B]) -> [B]; pairwise (positive [B, 1], negative [B, n]) -> [B, n].
    ``predict`` maps logits of any shape to values: the identity, or the sigmoid where they are probabilities.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    kind: Literal["pointwise", "pairwise"]
    tasks: tuple[TaskKind, ...]
    predict: Callable[[Tensor], Tensor]


def mse(logit: Tensor, label: Tensor) -> Tensor:
    """Squared error (logit - label)^2 of logit [B] and label [B]: [B]; two shapes are a ValueError."""
    _check_pointwise("mse", logit, label)
    return (logit - label).square()


def huber(logit: Tensor, label: Tensor) -> Tensor:
    """Huber's loss of logit [B] and label [B]: [B]; two shapes are a ValueError.

    e^2 / 2 where the error e is at most 1 in size, else |e| - 1/2 (Huber 1964, delta = 1).
    """
    _check_pointwise("huber", logit, label)
    return F.huber_loss(logit, label, reduction="none", delta=1.0)


def bce(logit: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy -y log s - (1 - y) log(1 - s), s = sigmoid(logit), of logit [B] and label [B]: [B].

    The label is 0, 1 or a probability; two shapes are a ValueError.
    """
    _check_pointwise("bce", logit, label)
    return F.binary_cross_entropy_with_logits(logit, label, reduction="none")


def pairwise_sigmoid(positive: Tensor, negative: Tensor) -> Tensor:
    """1 - sigmoid(d), d = positive [B, 1] - negative [B, n]: [B, n], a smooth 1 - AUC; ValueError as in :func:`bpr`.

    Bounded, with gradient -sigmoid(d)(1 - sigmoid(d)), which vanishes for badly misranked pairs.
    """
    _check_pairwise("pairwise_sigmoid", positive, negative)
    return torch.sigmoid(negative - positive)  # 1 - sigmoid(d), without cancellation


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """-log sigmoid(positive [B, 1] - negative [B, n]): [B, n]; other shapes are a ValueError (Rendle et al. 2009)."""
    _check_pairwise("bpr", positive, negative)
    return F.softplus(negative - positive)


def identity(logit: Tensor) -> Tensor:
    """The logit itself, any shape."""
    return logit


LOSSES: dict[str, Loss] = {
    "mse": Loss(mse, "pointwise", ("regression",), identity),
    "huber": Loss(huber, "pointwise", ("regression",), identity),
    "bce": Loss(bce, "pointwise", ("binary",), torch.sigmoid),
    "bpr": Loss(bpr, "pairwise", ("ranking",), identity),
    "pairwise_sigmoid": Loss(pairwise_sigmoid, "pairwise", ("ranking",), identity),
}
"""Every loss by name."""


def loss(name: str) -> Loss:
    """Look up a loss; an unknown name is a :class:`ConfigError`."""
    if name not in LOSSES:
        raise ConfigError(did_you_mean("loss", name, LOSSES))
    return LOSSES[name]


def check_task(task: Task) -> None:
    """Raise :class:`ConfigError` if the task's loss is unknown or not for its kind of task."""
    found = loss(task.loss)
    if task.kind not in found.tasks:
        fitting = ", ".join(sorted(name for name, known in LOSSES.items() if task.kind in known.tasks))
        kinds = " and ".join(found.tasks)
        raise ConfigError(f"task '{task.name}': loss '{task.loss}' is for {kinds} tasks; {task.kind} takes: {fitting}")


def masked_mean(loss: Tensor, label: Tensor) -> Tensor:
    """Mean of loss [B] over the rows whose label [B] is not NaN: []; 0 if there is none, ValueError on two shapes.

    sum / max(1, count), as in PLE (Tang et al. 2020, section 4.3).
    """
    _check_pointwise("masked_mean", loss, label)
    known = label == label  # false for NaN alone
    return torch.where(known, loss, 0.0).sum(dim=0) / known.sum(dim=0).clamp(min=1)


def task_loss(spec: Loss, logits: Tensor, label: Tensor) -> Tensor:
    """One task's loss over the rows whose label [B] is not NaN: [].

    logits are [B] for a pointwise loss; for a pairwise one [B, 1 + n], the observed item first, and the row's
    mean over its n negatives counts. Rows without a label enter neither value nor gradient. Other shapes are a
    ValueError.
    """
    if spec.kind == "pointwise":
        # a NaN must not reach the formula: its gradient would be 0 * NaN
        return masked_mean(spec.function(logits, torch.where(label == label, label, 0.0)), label)
    if logits.dim() != 2 or logits.shape[1] < 2 or logits.shape[:1] != label.shape:
        raise ValueError(f"pairwise logits and label must be [B, 1 + n] and [B], not {_shapes(logits, label)}")
    positive, negative = torch.split(logits, [1, logits.shape[1] - 1], dim=1)
    return masked_mean(spec.function(positive, negative).mean(dim=1), label)


def _check_pointwise(name: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"{name}: prediction and label must have one shape [B], not {_shapes(first, second)}")


def _check_pairwise(name: str, positive: Tensor, negative: Tensor) -> None:
    fits = positive.dim() == negative.dim() == 2 and positive.shape == (negative.shape[0], 1)
    if not fits:
        raise ValueError(f"{name}: positive and negative must be [B, 1] and [B, n], not {_shapes(positive, negative)}")


def _shapes(first: Tensor, second: Tensor) -> str:
    return f"{[*first.shape]} and {[*second.shape]}"
