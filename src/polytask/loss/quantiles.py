"""Watch time by quantiles: several of them per row, or the row's rank among videos as long as its own."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import ConfigError
from polytask.loss.base import Context, Observed, check_option
from polytask.loss.seconds import quantiles, seconds, softplus_inverse

_KNOTS = 101
_LEVELS = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
_LEAST = 0.01  # of the scale: a step that starts at 0 could not be learned, softplus being flat there


class Quantile(nn.Module):
    """Quantiles of the row's seconds at ``levels``, by the mean of their pinball losses (Koenker and Bassett 1978).

    max(t e, (t - 1) e) at level t, where e = label - quantile in units of the mean training label. Every quantile
    is the one before plus a softplus, so they never cross (as in Lin et al. 2024, arXiv:2407.12223). Predicts their
    expected value by the trapezoid rule, the outermost quantiles standing for the tails: below the mean where the
    upper tail is long.
    """

    levels: Tensor
    scale: Tensor
    shares: Tensor

    def __init__(self, observed: Observed, *, levels: Sequence[float] = _LEVELS) -> None:
        super().__init__()
        numbers = all(isinstance(level, float) for level in levels)
        if len(levels) < 2 or not numbers or any(low >= high for low, high in pairwise([0.0, *levels, 1.0])):
            raise ConfigError(f"levels = {list(levels)} must be two or more numbers that rise between 0 and 1")
        self.outputs = len(levels)
        label, exact = seconds(observed), torch.tensor(levels, dtype=torch.float64)
        scale = float(label.mean()) or 1.0
        self.first = _steps((quantiles(label, exact) / scale).tolist())
        middles = torch.tensor([0.0, *((low + high) / 2 for low, high in pairwise(levels)), 1.0], dtype=torch.float64)
        kept = {"levels": exact, "shares": middles.diff(), "scale": torch.tensor(scale, dtype=torch.float64)}
        for name, value in kept.items():
            self.register_buffer(name, value.to(observed.label.dtype))

    def target(self, label: Tensor, context: Context) -> Tensor:
        """Seconds."""
        return label

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Mean pinball loss [B] of logits [B, levels]."""
        error = (target[:, None] - self.quantiles(logits)) / self.scale
        return torch.maximum(self.levels * error, (self.levels - 1) * error).mean(dim=1)

    def quantiles(self, logits: Tensor) -> Tensor:
        """The row's quantiles [B, levels], in seconds."""
        return F.softplus(logits).cumsum(dim=1) * self.scale

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """Expected seconds by the trapezoid rule."""
        return (self.quantiles(logits) * self.shares).sum(dim=1)

    def start(self) -> list[float]:
        """The quantiles of the training labels."""
        return self.first


class DurationQuantile(nn.Module):
    """D2Q: squared error of the label's rank in 0..1 among rows of like duration; predicts the seconds of that rank.

    Training rows are cut by duration, the task's ``by``, into ``groups`` of equal size; rows of unknown duration are
    ranked among all. Ties share the middle of their ranks. A constant predicts each group's median (Zhan et al., KDD
    2022).
    """

    outputs = 1
    edges: Tensor
    inverse: Tensor

    def __init__(self, observed: Observed, *, groups: int = 30) -> None:
        super().__init__()
        check_option("groups", groups, 1, 10_000)
        known = ~observed.label.isnan()
        label, by = seconds(observed), observed.by[known].double()
        levels = torch.linspace(0, 1, groups + 1, dtype=torch.float64)[1:-1]
        durations = by[~by.isnan()]
        edges = quantiles(durations, levels) if len(durations) else torch.zeros_like(levels)
        # as group_of, without its [N, groups]
        own = torch.bucketize(by, edges).where(~by.isnan(), groups) if known.any() else label.new_full((1,), groups)
        self.register_buffer("edges", edges.to(observed.label.dtype))
        self.register_buffer("inverse", _inverse(label, own, groups).to(observed.label.dtype))

    def target(self, label: Tensor, context: Context) -> Tensor:
        """Rank in 0..1."""
        return rank_of(label, self._table(context))

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Squared error [B] of the rank."""
        return (logits - target).square()

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """Seconds of the rank, which is cut to 0..1."""
        return value_of(logits.clamp(0, 1), self._table(context))

    def start(self) -> list[float]:
        """The mean rank."""
        return [0.5]

    def _table(self, context: Context) -> Tensor:
        if context.by is None:
            raise ValueError("d2q needs context.by: the duration of each row")
        return self.inverse[group_of(context.by, self.edges)]


def _steps(values: Sequence[float]) -> list[float]:
    """Logits whose summed softplus are the rising ``values``, none of them flat."""
    found: list[float] = []
    reached = 0.0
    for value in values:
        step = max(value - reached, _LEAST)
        found.append(softplus_inverse(step))
        reached += step
    return found


def group_of(by: Tensor, edges: Tensor) -> Tensor:
    """Group [B] of each value [B]: how many edges [K - 1] are below it; K where it is NaN."""
    return torch.where(by.isnan(), len(edges) + 1, (by[:, None] > edges).sum(dim=1))


def rank_of(value: Tensor, table: Tensor) -> Tensor:
    """Level in 0..1 of each value [B] in the quantiles [B, M] of its group at levels 0, 1 / (M - 1), ..., 1.

    Linear between quantiles; where several equal the value, the middle of their levels. NaN stays NaN.
    """
    last = table.shape[1] - 1
    below, upto = ((compare(table, value[:, None])).sum(dim=1) for compare in (torch.lt, torch.le))
    low = table.gather(1, (below - 1).clamp(min=0)[:, None])[:, 0]
    high = table.gather(1, below.clamp(max=last)[:, None])[:, 0]
    between = below - 1 + (value - low) / torch.where(high > low, high - low, 1.0)
    place = torch.where(upto > below, (below + upto - 1) / 2, between.clamp(0, last))
    return place / last


def value_of(level: Tensor, table: Tensor) -> Tensor:
    """The quantile [B] at each level [B] in 0..1, linear between those of its table [B, M]."""
    last = table.shape[1] - 1
    place = level * last
    low = place.detach().floor().clamp(max=last - 1).long()
    ends = [table.gather(1, (low + step)[:, None])[:, 0] for step in (0, 1)]
    return ends[0] + (ends[1] - ends[0]) * (place - low)


def _inverse(label: Tensor, group: Tensor, groups: int) -> Tensor:
    """Quantiles [groups + 1, knots] of the labels [N] of each group; of all labels for an empty one and the last."""
    levels = torch.linspace(0, 1, _KNOTS, dtype=torch.float64)
    every = quantiles(label, levels)
    own = (label[group == number] for number in range(groups))
    return torch.stack([*(quantiles(rows, levels) if len(rows) else every for rows in own), every])
