"""Ranking losses of an observed item against sampled ones, pair by pair: bpr, its bounded form, hinge and warp."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.loss.base import Context, Loss, Observed, check_option, shapes

_EULER = 0.5772156649015329  # H(n) = digamma(n + 1) + Euler's constant

Formula = Callable[[Tensor, Tensor], Tensor]


def pairwise_sigmoid(positive: Tensor, negative: Tensor) -> Tensor:
    """1 - sigmoid(d), d = positive [B, 1] - negative [B, n]: [B, n], a smooth 1 - AUC; ValueError as in :func:`bpr`.

    Bounded, with gradient -sigmoid(d)(1 - sigmoid(d)), which vanishes for badly misranked pairs.
    """
    check_pair("pairwise_sigmoid", positive, negative)
    return torch.sigmoid(negative - positive)  # 1 - sigmoid(d), without cancellation


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """-log sigmoid(positive [B, 1] - negative [B, n]): [B, n]; other shapes are a ValueError (Rendle et al. 2009)."""
    check_pair("bpr", positive, negative)
    return F.softplus(negative - positive)


def hinge(positive: Tensor, negative: Tensor, *, margin: float = 1.0) -> Tensor:
    """max(0, margin - d), d = positive [B, 1] - negative [B, n]: [B, n] (Herbrich et al. 2000)."""
    check_pair("hinge", positive, negative)
    return (margin - (positive - negative)).clamp(min=0)


def warp(positive: Tensor, negative: Tensor, weight: Tensor, *, margin: float = 1.0) -> Tensor:
    """The hinge of the first of ``negative`` [B, n] that violates the margin, times its weight [n]: [B].

    Weighted approximate-rank pairwise loss (Weston, Bengio, Usunier 2011): the more draws until a violator, the
    better the positive [B, 1] is ranked, and the smaller the weight. A row without violator costs nothing.
    """
    slack = hinge(positive, negative, margin=margin)
    violated = slack > 0
    first = violated & (violated.cumsum(dim=1) == 1)
    return (torch.where(first, slack, 0.0) * weight).sum(dim=1)


class Ranking(nn.Module):
    """A loss that orders items: ``rows`` gives every row's (logits, target, context) -> [B].

    With ``own`` a row whose own item is unknown (index 0) does not count, since its logit stands for no item.
    """

    outputs = 1

    def __init__(self, rows: nn.Module, own: bool = False) -> None:
        super().__init__()
        self.rows, self.own = rows, own

    def target(self, label: Tensor, context: Context) -> Tensor:
        """The label itself: 1 on rows that are positives, NaN elsewhere."""
        return torch.where(items_of(context)[:, 0] > 0, label, torch.nan) if self.own else label

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """Loss of every row [B]."""
        value: Tensor = self.rows(logits, target, context)
        return value

    def predict(self, logits: Tensor, context: Context) -> Tensor:
        """The logit, which orders items."""
        return logits

    def start(self) -> None:
        """A ranking has no constant prediction."""


class Pairwise(nn.Module):
    """The mean of a formula (positive [B, 1], negative [B, n]) -> [B, n] over a row's negatives.

    With ``hard`` only that many of them count, those the model scores highest now (dynamic negative sampling,
    Zhang et al., SIGIR 2013).
    """

    def __init__(self, formula: Formula, hard: int = 0) -> None:
        super().__init__()
        check_option("hard", hard, 0)
        self.formula, self.hard = formula, hard

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """The row's mean [B] of logits [B, 1 + n]."""
        positive, negative = split_pair(logits, target)
        if 0 < self.hard < negative.shape[1]:
            negative = negative.topk(self.hard, dim=1).values
        return self.formula(positive, negative).mean(dim=1)


class Warp(nn.Module):
    """:func:`warp` with weight H(floor((I - 1) / N)), H(k) = 1 + 1/2 + ... + 1/k, at the N-th draw of I items."""

    items: Tensor

    def __init__(self, observed: Observed, margin: float = 1.0) -> None:
        super().__init__()
        check_option("margin", margin, 0)
        self.margin = margin
        items = len(observed.popularity) - 1  # index 0 is no item
        self.register_buffer("items", torch.tensor(items, dtype=observed.label.dtype))

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """The weighted hinge [B] of logits [B, 1 + n], negatives in the order of their drawing."""
        positive, negative = split_pair(logits, target)
        draws = torch.arange(1, negative.shape[1] + 1, dtype=logits.dtype, device=logits.device)
        rank = torch.floor((self.items - 1) / draws).clamp(min=0)
        return warp(positive, negative, torch.digamma(rank + 1) + _EULER, margin=self.margin)


def items_of(context: Context) -> Tensor:
    """The items [B, 1 + n] of the rows, which a loss over items cannot do without."""
    if context.items is None:
        raise ValueError("this loss needs context.items: the index of each row's item")
    return context.items


def split_pair(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, 1 + n] as those of the observed item [B, 1] and of the sampled ones [B, n]."""
    if logits.dim() != 2 or logits.shape[1] < 2 or logits.shape[:1] != label.shape:
        raise ValueError(f"pairwise logits and label must be [B, 1 + n] and [B], not {shapes(logits, label)}")
    positive, negative = torch.split(logits, [1, logits.shape[1] - 1], dim=1)
    return positive, negative


def check_pair(name: str, positive: Tensor, negative: Tensor) -> None:
    """A ValueError unless the shapes are [B, 1] and [B, n]."""
    if not positive.dim() == negative.dim() == 2 or positive.shape != (negative.shape[0], 1):
        raise ValueError(f"{name}: positive and negative must be [B, 1] and [B, n], not {shapes(positive, negative)}")


def _of(formula: Formula) -> Callable[..., Ranking]:
    def make(observed: Observed, *, hard: int = 0) -> Ranking:
        return Ranking(Pairwise(formula, hard))

    return make


def _hinge(observed: Observed, *, margin: float = 1.0, hard: int = 0) -> Ranking:
    check_option("margin", margin, 0)
    return Ranking(Pairwise(partial(hinge, margin=margin), hard))


def _warp(observed: Observed, *, margin: float = 1.0) -> Ranking:
    return Ranking(Warp(observed, margin))


PAIRWISE: dict[str, Loss] = {
    "bpr": Loss(_of(bpr), "pairwise", ("ranking",)),
    "pairwise_sigmoid": Loss(_of(pairwise_sigmoid), "pairwise", ("ranking",)),
    "hinge": Loss(_hinge, "pairwise", ("ranking",)),
    "warp": Loss(_warp, "pairwise", ("ranking",)),
}
