"""Every metric keeps the promises of its kind, whatever it computes; and a broken promise is seen."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from polytask.metrics import METRICS, Grouped, Lists, Metric, Ranks, Rows, metric
from polytask.testing import check_metric

AUC, MSE, MRR, COVERAGE = (METRICS[name] for name in ("auc", "mse", "mrr", "coverage"))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_keeps_its_promises(name: str) -> None:
    check_metric(METRICS[name])


@pytest.mark.parametrize("name", ["entire_auc", "ece@3", "field_rce@4", "ndcg@1", "map@50", "novelty@3"])
def test_so_it_does_by_any_of_its_names(name: str) -> None:
    check_metric(metric(name))


def ties_for_free(rows: Rows, _: int) -> Tensor:
    """An AUC in which a positive that is tied with a negative counts as if it stood above it."""
    up, down = rows.label == 1, rows.label == 0
    pairs = rows.prediction[up][:, None] >= rows.prediction[down]
    weight = rows.weight[up][:, None] * rows.weight[down]
    return (pairs * weight).sum() / weight.sum()


def first_row(rows: Rows, _: int) -> Tensor:
    return (rows.prediction[0] - rows.label[0]).square()


def unweighted(rows: Rows, _: int) -> Tensor:
    return (rows.prediction - rows.label).square().mean()


def total(rows: Rows, _: int) -> Tensor:
    return ((rows.prediction - rows.label).square() * rows.weight).sum()


def nothing(rows: Rows, _: int) -> Tensor:
    return rows.prediction * torch.nan


def infinite(rows: Rows, _: int) -> Tensor:
    return rows.prediction + torch.inf


def fails(rows: Rows, _: int) -> Tensor:
    raise ZeroDivisionError("no rows")


def biggest_user(read: Ranks, _: int) -> Tensor:
    return read.ranks[-1:]


def first_list(read: Lists, _: int) -> Tensor:
    return read.items[0, 0].double()


def whole_lists(read: Lists, _: int) -> Tensor:
    return (read.items >= 0).double().sum()


@pytest.mark.parametrize(
    ("like", "function", "changed", "sentence"),
    [
        (AUC, AUC.function, {"better": "up"}, "better must be one of higher, lower, near 1"),
        (AUC, AUC.function, {"better": "lower"}, "the labels themselves do not score better than their opposite: 1 ag"),
        (AUC, ties_for_free, {}, "a constant prediction scores 1, random orders 0.5"),
        (MSE, first_row, {}, "rows in another order give another value"),
        (MSE, unweighted, {}, "a row of weight 3 does not count as three rows"),
        (MSE, total, {}, "weights that are all five times as large change the value"),
        (MSE, nothing, {"undefined": "never"}, "it has no value where there is enough to compare: never"),
        (MSE, infinite, {}, "its value is not finite"),
        (MSE, fails, {}, "it fails on rows: ZeroDivisionError: no rows"),
        (MRR, MRR.function, {"better": "lower"}, "held-out items at the head of the list do not score better"),
        (MRR, biggest_user, {}, "give another value"),
        (COVERAGE, first_list, {}, "users in another order give another value"),
        (COVERAGE, whole_lists, {}, "items after the cut-off change the value"),
    ],
)
def test_a_broken_promise_is_named(
    like: Metric, function: Callable[[Any, int], Tensor | Grouped], changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AssertionError, match=f"metric 'own': .*{sentence}") as caught:
        check_metric(replace(like, name="own", function=function, **changed))
    assert "\n" not in str(caught.value)


def test_a_metric_of_ones_own_that_keeps_them_passes() -> None:
    def within_half(rows: Rows, _: int) -> Tensor:
        return ((rows.prediction - rows.label).abs() < 0.5).double()

    check_metric(Metric("within_half", "higher", "values", within_half))
