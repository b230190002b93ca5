"""What a metric is held to, whatever its formula, on data drawn for what it reads."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from polytask.metrics import Better, Metric, Score
from polytask.testing.claims import Claims

_ROWS, _GROUPS, _ITEMS, _K = 600, 12, 30, 5
_RANGE = (0.0, 4.0)
_CLOSE = 1e-9
_SHUFFLES = 200


def check_metric(metric: Metric) -> None:
    """Raise an :class:`AssertionError` that names the first promise of a :class:`polytask.metrics.Metric` it breaks.

    It promises a finite value that says the same of rows, users or lists in any order, and None where there is
    nothing to compare; that what is right scores better than what is wrong, by the direction it names. One of
    ``values`` also leaves out rows without a label or of weight 0, and counts a row of weight 3 as three rows; if
    it reads no more than the order of predictions, a constant one scores what random orders score on average, so
    that no order among ties is for free. A metric that takes a cut-off is checked at its ``k``, or at 5.
    """
    if metric.cutoff and not metric.k:
        metric = replace(metric, k=_K)
    case = _Case(metric)
    case.claim(metric.better in get_args(Better), f"better must be one of {', '.join(get_args(Better))}")
    checks: dict[str, tuple[Callable[[_Case], None], ...]] = {
        "values": (_rows, _weights, _value_direction, _chance),
        "ranks": (_users, _rank_direction),
        "lists": (_lists,),
    }
    for check in checks[metric.needs]:
        check(case)


class _Data(NamedTuple):
    """Rows of a values metric: prediction, label, weight, and its group and second column."""

    prediction: Tensor
    label: Tensor
    weight: Tensor
    group: Tensor
    by: Tensor

    def rows(self, index: Tensor) -> "_Data":
        """These rows, in this order."""
        return _Data(*(column[index] for column in self))


class _Case:
    """A metric, data for it, and how a broken promise is told."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.claims = Claims(f"metric '{metric.name}'")
        self.claim, self.trying = self.claims.claim, self.claims.trying

    def data(self) -> _Data:
        """Rows with ties; labels 0 and 1 or numbers, of which predictions know something."""
        draw = torch.Generator().manual_seed(0)
        uniform, noise, by = (torch.rand(_ROWS, generator=draw, dtype=torch.float64) for _ in range(3))
        label = (uniform < 0.3).double() if self.metric.binary else (4 * uniform).round() + 0.25 * noise.round()
        prediction = (10 * (0.5 * label + 0.5 * noise)).round() / 10  # ties within and across labels
        group = torch.randint(0, _GROUPS, (_ROWS,), generator=draw)
        return _Data(prediction, label, torch.ones(_ROWS, dtype=torch.float64), group, by)

    def score(self, data: _Data) -> Score:
        """The metric of ``data``, given what it reads alone."""
        reads: dict[str, Any] = {"group": data.group, "by": data.by, "range": _RANGE}
        given = {name: reads[name] for name in self.metric.reads}
        with self.trying("it fails on rows"):
            return self.metric(data.prediction, data.label, weight=data.weight, **given)

    def value(self, score: Score) -> float:
        """The value of ``score``, which must be there."""
        self.claim(score.value is not None, f"it has no value where there is enough to compare: {score.why}")
        return float(score)

    def same(self, found: float, expected: float, sentence: str) -> None:
        """The claim that two values are equal, up to rounding."""
        self.claim(abs(found - expected) <= _CLOSE * (1 + abs(expected)), f"{sentence}: {found:g}, not {expected:g}")

    def better(self, first: float, second: float, sentence: str) -> None:
        """The claim that the first of two values is the better one."""
        sign = {"higher": 1, "lower": -1}.get(self.metric.better)
        holds = abs(first - 1) < abs(second - 1) if sign is None else sign * first > sign * second
        self.claim(holds, f"{sentence}: {first:g} against {second:g}, where {self.metric.better} is better")

    def absent(self, score: Score, sentence: str) -> None:
        """The claim that there is no value, and a reason."""
        self.claim(score.value is None and bool(score.why), f"{sentence}, there must be no value but a reason")


def _rows(case: _Case) -> None:
    data = case.data()
    whole = case.value(case.score(data))
    case.claim(abs(whole) < float("inf"), "its value is not finite")
    order = torch.randperm(_ROWS, generator=torch.Generator().manual_seed(1))
    case.same(case.value(case.score(data.rows(order))), whole, "rows in another order give another value")
    missing = torch.arange(_ROWS) % 7 == 0
    some = case.score(data._replace(label=data.label.masked_fill(missing, torch.nan)))
    kept = case.value(case.score(data.rows((~missing).nonzero().flatten())))
    case.same(case.value(some), kept, "rows without a label change the value")
    case.absent(case.score(data._replace(label=data.label * torch.nan)), "without any label")


def _weights(case: _Case) -> None:
    data = case.data()
    weight = (torch.arange(_ROWS) % 4).double()
    repeated = data.rows(torch.arange(_ROWS).repeat_interleave(weight.long()))
    found = case.value(case.score(data._replace(weight=weight)))
    case.same(found, case.value(case.score(repeated)), "a row of weight 3 does not count as three rows, of 0 as none")
    scaled = case.value(case.score(data._replace(weight=5 * weight)))
    case.same(scaled, found, "weights that are all five times as large change the value")


def _value_direction(case: _Case) -> None:
    data = case.data()
    low, high = data.label.min(), data.label.max()
    right, wrong = (case.value(case.score(data._replace(prediction=p))) for p in (data.label, low + high - data.label))
    case.better(right, wrong, "the labels themselves do not score better than their opposite")


def _chance(case: _Case) -> None:
    """Of a metric that no increasing map of the predictions changes."""
    data = case.data()
    squeezed = data._replace(prediction=data.prediction / (1 + data.prediction.max()) ** 2)
    curved = squeezed._replace(prediction=squeezed.prediction**3)
    whole = case.value(case.score(data))
    if any(abs(case.value(case.score(d)) - whole) > _CLOSE for d in (squeezed, curved)):
        return
    constant = case.value(case.score(data._replace(prediction=torch.full_like(data.prediction, 0.5))))
    draw = torch.Generator().manual_seed(2)
    orders = [torch.rand(_ROWS, generator=draw, dtype=torch.float64) for _ in range(_SHUFFLES)]
    found = torch.tensor([case.value(case.score(data._replace(prediction=p))) for p in orders])
    error = float(found.std()) / _SHUFFLES**0.5
    mean = float(found.mean())
    sentence = f"a constant prediction scores {constant:g}, random orders {mean:g} on average"
    case.claim(abs(constant - mean) <= 5 * error + _CLOSE, sentence)


def _held_out() -> tuple[Tensor, Tensor]:
    """Ranks [N] of held-out items, some of them tied, and whose they are [N]."""
    draw = torch.Generator().manual_seed(0)
    users = torch.arange(_GROUPS).repeat_interleave(torch.arange(_GROUPS) % 3 + 1)
    return torch.randint(2, 2 * _ITEMS, (len(users),), generator=draw).double() / 2 + 0.5, users


def _users(case: _Case) -> None:
    ranks, users = _held_out()
    with case.trying("it fails on ranks"):
        whole = case.value(case.metric(ranks, users))
        order = torch.randperm(len(ranks), generator=torch.Generator().manual_seed(1))
        turned = case.value(case.metric(ranks[order], users[order]))
        renamed = case.value(case.metric(ranks, 1000 - 7 * users))
        nobody = case.metric(ranks[:0], users[:0])
    case.claim(abs(whole) < float("inf"), "its value is not finite")
    case.same(turned, whole, "held-out items in another order give another value")
    case.same(renamed, whole, "users of other numbers give another value")
    case.absent(nobody, "without any held-out item")


def _rank_direction(case: _Case) -> None:
    _, users = _held_out()
    counts = torch.bincount(users)
    place = torch.arange(len(users)) - (counts.cumsum(dim=0) - counts)[users]
    first, last = (case.value(case.metric((place + at).double(), users)) for at in (1, 1 + 10 * case.metric.k + _ITEMS))
    case.better(first, last, "held-out items at the head of the list do not score better than at its end")


def _lists(case: _Case) -> None:
    draw = torch.Generator().manual_seed(0)
    lists = torch.stack([torch.randperm(_ITEMS, generator=draw) for _ in range(_GROUPS)])[:, : case.metric.k + 2]
    lists[0, 1:] = -1  # a user with a single candidate
    popularity = torch.randint(0, 50, (_ITEMS,), generator=draw)
    order = torch.randperm(_GROUPS, generator=draw)
    with case.trying("it fails on lists"):
        whole = case.value(case.metric(lists, popularity))
        turned = case.value(case.metric(lists[order], popularity))
        cut = case.value(case.metric(lists[:, : case.metric.k], popularity)) if case.metric.cutoff else whole
        nobody = case.metric(lists[:0], popularity)
    case.claim(abs(whole) < float("inf"), "its value is not finite")
    case.same(turned, whole, "users in another order give another value")
    case.same(cut, whole, "items after the cut-off change the value")
    case.absent(nobody, "without any user")
