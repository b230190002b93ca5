"""What a loss is: how it reads a task's logits, its label and their context, and how logits become a value."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from polytask.errors import ConfigError
from polytask.schema import TaskKind

LossKind = Literal["pointwise", "pairwise", "in_batch", "catalogue"]


class Observed(NamedTuple):
    """A task's training rows, for losses that are fitted: ``label`` [N], ``by`` [N] (NaN = missing).

    ``popularity`` [I] counts the rows of every item, index 0 (unknown) as none; empty without items.
    ``given_label`` [N]: whether the task's condition held (NaN = unknown); None for a task without one.
    """

    label: Tensor
    by: Tensor
    popularity: Tensor
    given_label: Tensor | None = None

    @property
    def held(self) -> "Observed":
        """The same rows with the label only where the condition held."""
        return self._replace(label=held_label(self.label, self.given_label))

    @property
    def joint(self) -> "Observed":
        """The same rows with the label of the condition and the task together."""
        return self._replace(label=joint_label(self.label, self.given_label))

    @property
    def mean(self) -> float:
        """Mean label of the rows that have one; 0 where none has."""
        known = self.label[~self.label.isnan()]
        return float(known.double().mean()) if len(known) else 0.0


class Context(NamedTuple):
    """What stands beside a row's logits and label; a part that the task does not have is None.

    ``by`` [B]: the task's second column (NaN = missing). ``given`` [B]: log-probability of the condition, and
    ``given_label`` [B] whether it held (NaN = unknown). ``items`` [B, 1 + n]: index of the row's item and of its
    negatives.
    """

    by: Tensor | None = None
    given: Tensor | None = None
    given_label: Tensor | None = None
    items: Tensor | None = None


_NOTHING = Context()


class TaskLoss(Protocol):
    """A module: the loss of one task, fitted on its training rows; constants it fitted are its buffers.

    It works under ``torch.func.vmap`` and tracing, so it never looks at values. Logits are [B] for one output,
    [B, outputs] for more; [B, 1 + n] for a pairwise loss, the observed item first; [B, B] for an in-batch loss
    (row's user by row's item); [B, I] for a catalogue loss, every item in the order of its index.

    The loss of a binary task also has ``log_probability(logits, context)``: log p(task | its condition) [B].
    """

    outputs: int

    def target(self, label: Tensor, context: Context) -> Tensor:
        """What the row is compared with [B], from its label [B]; NaN where the row does not count."""

    def __call__(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Loss of every row [B]; ``target`` [B] is 0 where it was NaN, and the result there is not used."""

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """The task's value [B], in the unit of its label, of pointwise logits."""

    def start(self) -> list[float] | None:
        """Where the output biases [outputs] begin: a constant prediction; None to start as other biases."""


class WeightUse(NamedTuple):
    """How far weights by inverse propensity carry: the ``effective`` sample size of the ``rows`` that have one.

    ``clipped`` is the share of these rows whose weight is held at its bound.
    """

    effective: float
    rows: int
    clipped: float


@runtime_checkable
class Weighing(Protocol):
    """A loss that weighs its rows by inverse propensity, and whose use of them is logged."""

    def weight_use(self, context: Context) -> WeightUse:
        """How far the weights of the rows of ``context`` carry."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name: ``make(observed, **options)`` builds it; which tasks it fits and what it needs of them."""

    make: Callable[..., TaskLoss]
    kind: LossKind
    tasks: tuple[TaskKind, ...]
    given: bool = False
    by: bool = False


def masked_mean(loss: Tensor, known: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of loss [B] over the rows where known [B] holds: []; 0 if there is none, ValueError on two shapes.

    sum / max(1, count), as in PLE (Tang et al. 2020, section 4.3); with weight [B], sum(w loss) / sum(w).
    """
    check_shapes("masked_mean", loss, known)
    counted = known.to(loss.dtype) if weight is None else torch.where(known, weight, 0.0)
    total = (torch.where(known, loss, 0.0) * counted).sum(dim=0)
    count = counted.sum(dim=0)
    return total / (count.clamp(min=1) if weight is None else torch.where(count > 0, count, 1.0))


def task_loss(
    spec: TaskLoss, logits: Tensor, label: Tensor, context: Context = _NOTHING, weight: Tensor | None = None
) -> Tensor:
    """One task's loss over the rows that have a target: []; rows without enter neither value nor gradient."""
    target = spec.target(label, context)
    known = target == target  # false for NaN alone
    # a NaN must not reach the formula: its gradient would be 0 * NaN
    return masked_mean(spec(logits, torch.where(known, target, 0.0), context), known, weight)


def held_label(label: Tensor, given_label: Tensor | None) -> Tensor:
    """The label [B] where the condition held, NaN where it did not or is unknown; the label itself without one."""
    return label if given_label is None else torch.where(given_label == 1, label, torch.nan)


def joint_label(label: Tensor, given_label: Tensor | None) -> Tensor:
    """Whether condition and task both hold [B]: 0 where the condition did not, whatever the label; else the label."""
    return label if given_label is None else torch.where(given_label == 0, 0.0, label)


def check_option(name: str, value: float, low: float, high: float = math.inf) -> None:
    """A :class:`ConfigError` unless ``value`` lies between ``low`` and ``high``."""
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ConfigError(f"{name} = {value:g} must be {bounds}")


def check_shapes(name: str, first: Tensor, second: Tensor) -> None:
    """A ValueError unless prediction and label have one shape: [B] against [B, 1] would broadcast in silence."""
    if first.shape != second.shape:
        raise ValueError(f"{name}: prediction and label must have one shape [B], not {shapes(first, second)}")


def shapes(first: Tensor, second: Tensor) -> str:
    """Two shapes, for a message."""
    return f"{[*first.shape]} and {[*second.shape]}"
