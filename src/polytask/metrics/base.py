"""What a metric is: its direction, its tie rule, its denominator, and what it has to be handed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from polytask.errors import ConfigError, PolytaskError, TrainingError

Better = Literal["higher", "lower", "near 1"]
Needs = Literal["values", "ranks", "lists"]
Reads = Literal["group", "by", "range"]
Range = tuple[float, float]

HINTS: dict[Reads, str] = {
    "group": "users; name the user column in the schema",
    "by": 'a second column; name it with by = "column"',
    "range": "the label's range; set range = [lowest, highest]",
}
"""What a metric reads beside prediction and label, and how a task is given it."""

_PAIRS: dict[Needs, tuple[str, str]] = {
    "values": ("prediction", "label"),
    "ranks": ("ranks", "users"),
    "lists": ("items", "popularity"),
}
_NO_USER = "no user has a held-out item"

AUC_MARGIN = 0.001
"""A difference in AUC that is customarily acted on (as by Tang et al., 2020)."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a metric came to: ``value`` over ``used`` rows, users or groups; ``skipped`` had nothing to compare.

    A metric that could not be computed has ``value`` None and says ``why``.
    """

    value: float | None
    better: Better
    used: int
    skipped: int = 0
    why: str = ""

    @property
    def sign(self) -> int:
        """+1 if higher is better, -1 if lower is, so that ``sign * value`` improves upward; 0 for "near 1"."""
        return {"higher": 1, "lower": -1, "near 1": 0}[self.better]

    def __float__(self) -> float:
        if self.value is None:
            raise PolytaskError(f"the metric has no value: {self.why}")
        return self.value


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows a ``values`` metric compares: ``prediction``, ``label`` and ``weight`` > 0, each [N] float64.

    ``group`` [N] int64 counts from 0 without a gap and ``by`` [N] is not NaN. For a metric that does not read them
    all rows are of group 0, ``by`` is 0 and ``range`` has no bounds.
    """

    prediction: Tensor
    label: Tensor
    weight: Tensor
    group: Tensor
    by: Tensor
    range: Range

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean [] of values [N]."""
        return (values * self.weight).sum() / self.weight.sum()


class Ranks(NamedTuple):
    """What a ``ranks`` metric reads: ``ranks`` [N] >= 1 of held-out items, and whose they are: ``user`` [N], 0..V-1."""

    ranks: Tensor
    user: Tensor

    def sum(self, values: Tensor) -> Tensor:
        """Sum of values [N] within each user: [V] float64."""
        return torch.bincount(self.user, weights=values.double())

    @property
    def held_out(self) -> Tensor:
        """Number of held-out items of each user [V]."""
        return torch.bincount(self.user)


class Lists(NamedTuple):
    """What a ``lists`` metric reads: ``items`` [U, K], a user's best first (-1: none left), and ``popularity`` [I]."""

    items: Tensor
    popularity: Tensor

    def exposure(self, k: int) -> Tensor:
        """How many of the lists, cut after ``k``, hold each item [I]."""
        first = self.items[:, :k]
        return torch.bincount(first[first >= 0], minlength=len(self.popularity))


class Grouped(NamedTuple):
    """A value per group [G], NaN where a group has none, and the group's ``weight`` [G] in the mean over groups."""

    values: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric by name: ``needs`` says what it is called with, ``better`` which way is up.

    ``function`` is the bare formula of (:class:`Rows`, :class:`Ranks` or :class:`Lists`, by ``needs``; cut-off).
    What it returns is averaged: over rows [N] by their weights, over users [V], or :class:`Grouped` over the
    groups that have a value; a [] stays as it is. ``reads`` is what a values metric takes beside prediction and
    label. ``cutoff``: it takes ``k``, as in ``ndcg@10``; one that has a ``k`` from the start may be named without.
    ``undefined`` says when the formula has no value. ``binary``: its labels are 0 or 1. ``entire``: it is meant
    for a conditional task over all rows, those where the condition did not hold included. ``margin`` is the smallest
    difference that is commonly acted on, where there is such a custom; without, it is a share of the value.
    """

    name: str
    better: Better
    needs: Needs
    function: Callable[[Any, int], Tensor | Grouped]
    cutoff: bool = False
    undefined: str = ""
    binary: bool = False
    reads: tuple[Reads, ...] = ()
    k: int = 0
    entire: bool = False
    margin: float | None = None

    def __call__(
        self,
        first: Tensor,
        second: Tensor,
        *,
        weight: Tensor | None = None,
        group: Tensor | None = None,
        by: Tensor | None = None,
        range: Range | None = None,
    ) -> Score:
        """Compute from (prediction [N], label [N]), (ranks [N] >= 1, users [N]) or (items [U, K], popularity [I]).

        Users and items are int64, in any order. A label NaN is a missing one. Only values metrics read the rest:
        ``weight`` [N] >= 0 (0 leaves a row out); ``group`` [N] int64 (below 0: none); ``by`` [N] (NaN: missing);
        ``range`` (lowest, highest). Tensors of two shapes, labels or probabilities out of range: ValueError. A
        missing ``reads``: :class:`ConfigError`. A prediction or rank that is not finite: :class:`TrainingError`.
        """
        if self.cutoff and self.k < 1:
            raise ConfigError(f"metric '{self.name}' needs a cut-off; write {self.name}@10")
        first, second = first.detach(), second.detach()
        if self.needs == "lists":
            return self._lists(first, second)
        self._check_shapes(first, second)
        first = first.double()
        if bad := int((~torch.isfinite(first)).sum()):
            what = "predictions" if self.needs == "values" else "ranks"
            raise TrainingError(f"{self.name}: {bad} of {len(first)} {what} are not finite")
        if self.needs == "ranks":
            return self._ranks(first, second)
        given: dict[Reads, Any] = {"group": group, "by": by, "range": range}
        return self._values(first, second.double(), self._weight(weight, len(first)), given)

    def _values(self, prediction: Tensor, label: Tensor, weight: Tensor, given: dict[Reads, Any]) -> Score:
        for name in self.reads:
            if given[name] is None:
                raise ConfigError(f"metric '{self.name}' reads {HINTS[name]}")
        length, grouped = len(label), "group" in self.reads
        group = self._column("group", given["group"], length) if grouped else torch.zeros(length, dtype=torch.int64)
        by = self._column("by", given["by"], length).double() if "by" in self.reads else torch.zeros(length).double()
        known = ~label.isnan() & (weight > 0) & (group >= 0) & ~by.isnan()
        used = int(known.sum())
        if used < length:
            prediction, label, weight, group, by = (x[known] for x in (prediction, label, weight, group, by))
        if self.binary and bool(((label != 0) & (label != 1)).any()):
            raise ValueError(f"{self.name}: labels must be 0 or 1")
        if grouped:
            group = torch.unique(group, return_inverse=True)[1]
        bounds = given["range"] if "range" in self.reads else (-math.inf, math.inf)
        rows = Rows(prediction, label, weight, group, by, bounds)
        return self._score(rows, used, length - used, "no row has a label")

    def _ranks(self, ranks: Tensor, users: Tensor) -> Score:
        if bool((ranks < 1).any()):
            raise ValueError(f"{self.name}: ranks start at 1, found {float(ranks.min())}")
        ascending = bool((users[1:] >= users[:-1]).all())  # as those of a part are: no need to sort for every metric
        distinct, user = (torch.unique_consecutive if ascending else torch.unique)(users, return_inverse=True)
        return self._score(Ranks(ranks, user), len(distinct), 0, _NO_USER)

    def _lists(self, items: Tensor, popularity: Tensor) -> Score:
        if items.dim() != 2 or popularity.dim() != 1 or items.shape[1] < self.k:
            shapes = f"{[*items.shape]} and {[*popularity.shape]}"
            raise ValueError(f"{self.name}: items and popularity must be [U, {self.k} or more] and [I], not {shapes}")
        if bool((items >= len(popularity)).any()):
            raise ValueError(f"{self.name}: items point outside popularity {[*popularity.shape]}")
        return self._score(Lists(items, popularity), len(items), 0, _NO_USER)

    def _score(self, read: Rows | Ranks | Lists, used: int, skipped: int, empty: str) -> Score:
        if not used:
            return Score(None, self.better, 0, skipped, empty)
        found = self.function(read, self.k)
        if isinstance(found, Grouped):
            defined = ~found.values.isnan()
            used, skipped = int(defined.sum()), int((~defined).sum())
            weight = found.weight[defined]
            value = float((found.values[defined] * weight).sum() / weight.sum())
        else:
            value = float(read.mean(found) if isinstance(read, Rows) and found.dim() else found.mean())
        if value != value:
            return Score(None, self.better, used, skipped, self.undefined)
        return Score(value, self.better, used, skipped)

    def _column(self, name: str, column: Tensor, length: int) -> Tensor:
        if column.shape != (length,):
            raise ValueError(f"{self.name}: {name} must be [{length}], not {[*column.shape]}")
        return column.detach()

    def _weight(self, weight: Tensor | None, length: int) -> Tensor:
        if weight is None:
            return torch.ones(length, dtype=torch.float64)
        weight = self._column("weight", weight, length).double()
        if bool((~torch.isfinite(weight) | (weight < 0)).any()):
            raise ValueError(f"{self.name}: weights must be finite and not below 0")
        return weight

    def _check_shapes(self, first: Tensor, second: Tensor) -> None:
        if first.shape != second.shape or first.dim() != 1:
            names = " and ".join(_PAIRS[self.needs])
            raise ValueError(f"{self.name}: {names} must be [N], not {[*first.shape]} and {[*second.shape]}")
