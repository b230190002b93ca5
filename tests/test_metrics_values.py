import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error, roc_auc_score
from torch import Tensor

from polytask.errors import ConfigError
from polytask.metrics import METRICS, Score, check_metrics, metric
from polytask.schema import Schema, Task

# six impressions of the users aaa, bb and c
BINARY = torch.tensor([1.0, 0, 1, 0, 1, 0])
PROBABILITY = torch.tensor([0.8, 0.8, 0.6, 0.4, 0.4, 0.2])
USERS = torch.tensor([0, 0, 0, 1, 1, 2])
VALUES = [name for name, found in METRICS.items() if found.needs == "values"]
INSIDE = (0.3, 0.7)


def made_up(seed: int, rows: int = 300) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Probabilities with ties, labels of both classes, and everything a metric may read."""
    draw = torch.Generator().manual_seed(seed)
    prediction = torch.randint(1, 20, (rows,), generator=draw).double() / 20
    label = (torch.rand(rows, generator=draw) < prediction).double()
    group = torch.randint(0, 12, (rows,), generator=draw)
    by = torch.randint(0, 80, (rows,), generator=draw).double()
    weight = torch.randint(1, 4, (rows,), generator=draw).double()
    return prediction, label, {"group": group, "by": by, "range": INSIDE, "weight": weight}


def value(name: str, prediction: Tensor, label: Tensor, **read: Any) -> float:
    return float(metric(name)(prediction, label, **read))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ne", 0.665611 / math.log(2)),
        ("pcoc", 1.066667),
        ("ece@5", 0.233333),
        ("ece@1", abs(3.2 - 3) / 6),
        ("gauc", 0.35),
        ("xauc", 2 / 3),
        ("mse_clipped", (0.3**2 + 0.7**2 + 0.4**2 + 0.4**2 + 0.6**2 + 0.3**2) / 6),
    ],
)
def test_golden_values(name: str, expected: float) -> None:
    found = value(name, PROBABILITY, BINARY, group=USERS, range=INSIDE)
    assert found == pytest.approx(expected, abs=1e-6)


def test_gauc_counts_the_groups_of_one_class_as_skipped() -> None:
    score = metric("gauc")(PROBABILITY, BINARY, group=USERS)
    assert (score.used, score.skipped, score.better) == (2, 1, "higher")
    more = torch.tensor([0.1, 0.9]), torch.tensor([1.0, 1.0]), torch.tensor([7, 7])
    wider = metric("gauc")(
        *(torch.cat(p) for p in zip((PROBABILITY, BINARY), more, strict=False)), group=torch.cat((USERS, more[2]))
    )
    assert (wider.value, wider.used, wider.skipped) == (score.value, 2, 2)


def test_gauc_leaves_out_rows_of_no_group() -> None:
    nobody = torch.where(USERS == 1, -1, USERS)
    score = metric("gauc")(PROBABILITY, BINARY, group=nobody)
    assert (score.value, score.used, score.skipped) == (0.25, 1, 1)
    none = metric("gauc")(PROBABILITY, BINARY, group=torch.arange(6))
    assert none == Score(None, "higher", 0, 6, "no user has labels of both classes")


@pytest.mark.parametrize("seed", range(3))
def test_gauc_is_the_weighted_mean_of_the_auc_of_users(seed: int) -> None:
    prediction, label, read = made_up(seed)
    total, parts = 0.0, 0.0
    for user in range(12):
        rows = read["group"] == user
        y, p, w = (x[rows].numpy() for x in (label, prediction, read["weight"]))
        if 0 < y.sum() < len(y):
            total, parts = total + w.sum(), parts + w.sum() * roc_auc_score(y, p, sample_weight=w)
    found = metric("gauc")(prediction, label, group=read["group"], weight=read["weight"])
    assert found.value == pytest.approx(parts / total, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_values_agree_with_scikit_learn(seed: int) -> None:
    prediction, label, read = made_up(seed)
    y, p, w = label.numpy(), prediction.numpy(), read["weight"].numpy() / 7
    for name, oracle in (
        ("mse", mean_squared_error),
        ("mae", mean_absolute_error),
        ("auc", roc_auc_score),
        ("logloss", log_loss),
    ):
        found = value(name, prediction, label, weight=torch.from_numpy(w))
        assert found == pytest.approx(oracle(y, p, sample_weight=w), rel=1e-12)
    assert value("rmse", prediction, label, weight=torch.from_numpy(w)) ** 2 == pytest.approx(
        mean_squared_error(y, p, sample_weight=w), rel=1e-12
    )


@pytest.mark.parametrize("name", VALUES)
def test_a_weight_of_three_is_the_row_three_times(name: str) -> None:
    prediction, label, read = made_up(5)
    times = read["weight"].long()
    repeated = {n: read[n].repeat_interleave(times) for n in ("group", "by")} | {"range": INSIDE}
    weighted = value(name, prediction, label, **read)
    assert weighted == pytest.approx(
        value(name, prediction.repeat_interleave(times), label.repeat_interleave(times), **repeated), rel=1e-12
    )
    assert weighted != pytest.approx(value(name, prediction, label, **{n: read[n] for n in repeated}), rel=1e-6)
    scaled = read | {"weight": read["weight"] * 0.01}
    assert value(name, prediction, label, **scaled) == pytest.approx(weighted, rel=1e-12)


@pytest.mark.parametrize("name", VALUES)
def test_rows_without_label_or_weight_change_no_value(name: str) -> None:
    prediction, label, read = made_up(6)
    score = metric(name)(prediction, label, **read)
    more = {n: torch.cat([t, t[:20]]) for n, t in read.items() if n != "range"} | {"range": INSIDE}
    more["weight"][-10:] = 0
    missing = torch.cat([label, torch.full((10,), torch.nan, dtype=torch.float64), torch.ones(10).double()])
    wider = metric(name)(torch.cat([prediction, torch.rand(20).double()]), missing, **more)
    assert (wider.value, wider.used) == (score.value, score.used)
    rows = not {"group", "by"} & set(METRICS[name].reads)
    assert wider.skipped == score.skipped + (20 if rows else 0)


@pytest.mark.parametrize("name", VALUES)
def test_order_of_rows_does_not_matter(name: str) -> None:
    prediction, label, read = made_up(7)
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(0))
    moved = {n: t[order] for n, t in read.items() if n != "range"} | {"range": INSIDE}
    expected = pytest.approx(value(name, prediction, label, **read), rel=1e-12)
    assert value(name, prediction[order], label[order], **moved) == expected
    renamed = moved | {"group": torch.randperm(900, generator=torch.Generator().manual_seed(1))[moved["group"]]}
    assert value(name, prediction[order], label[order], **renamed) == expected


@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_xauc_is_that_of_a_loop_over_pairs(seed: int, rows: int, levels: int) -> None:
    draw = np.random.default_rng(seed)
    prediction, label = draw.integers(0, 7, rows) / 7, draw.integers(0, levels, rows) * 13.7
    weight = draw.integers(1, 5, rows)
    right = every = 0.0
    for i in range(rows):
        for j in range(rows):
            if label[i] > label[j]:
                every += weight[i] * weight[j]
                right += weight[i] * weight[j] * (0.5 + 0.5 * np.sign(prediction[i] - prediction[j]))
    found = metric("xauc")(torch.tensor(prediction), torch.tensor(label), weight=torch.tensor(weight))
    if every:
        assert found.value == pytest.approx(right / every, rel=1e-12)
    else:
        assert (found.value, found.why) == (None, "every label is the same")


def test_ece_bins_are_open_above_but_for_the_last() -> None:
    prediction, label = torch.tensor([0.5, 0.49, 1.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert value("ece@2", prediction, label) == pytest.approx((abs(1.5 - 2) + abs(0.49 - 0)) / 4)
    assert value("ece", prediction, label) == value("ece@15", prediction, label)


@pytest.mark.parametrize("name", ["ece", "pcoc", "ne"])
def test_a_calibrated_generator_is_found_calibrated(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    prediction = torch.rand(200_000, generator=draw)
    label = (torch.rand(200_000, generator=draw) < prediction).float()
    right = {"ece": 0.0, "pcoc": 1.0, "ne": 0.5 / math.log(2)}[name]  # the mean entropy of p uniform is 1/2
    assert value(name, prediction, label) == pytest.approx(right, abs=0.01)
    off = value(name, prediction**2, label)
    assert abs(off - right) > 0.05


def test_ne_of_the_base_rate_is_one() -> None:
    label = torch.tensor([1.0, 0, 0, 0])
    assert value("ne", torch.full((4,), 0.25), label) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "label", "why"),
    [
        ("ne", [1.0, 1], "every label is of the same class"),
        ("ne", [0.0, 0], "every label is of the same class"),
        ("pcoc", [0.0, 0], "no label is 1"),
        ("xauc", [2.0, 2], "every label is the same"),
        ("field_rce", [0.0, 0], "the labels of every bucket sum to 0"),
    ],
)
def test_a_metric_without_a_value_says_why(name: str, label: list[float], why: str) -> None:
    score = metric(name)(torch.tensor([0.2, 0.4]), torch.tensor(label), by=torch.zeros(2))
    assert (score.value, score.why) == (None, why)


def test_field_rce_by_hand() -> None:
    by = torch.tensor([30.0, 10, 20, 40, 60, 50])
    label = torch.tensor([4.0, 1, 3, 0, 0, 8])
    prediction = torch.tensor([5.0, 2, 2, 3, 3, 3])
    # three buckets of two rows: durations 10 and 20, 30 and 40, 50 and 60
    score = metric("field_rce@3")(prediction, label, by=by)
    assert score.value == pytest.approx((abs(4 - 4) / 4 + abs(8 - 4) / 4 + abs(6 - 8) / 8) / 3)
    assert (score.used, score.skipped, score.better) == (3, 0, "lower")
    six = metric("field_rce@6")(prediction, label, by=by)  # two rows have label 0
    assert (six.used, six.skipped) == (4, 2)
    assert six.value == pytest.approx((1 / 1 + 1 / 3 + 1 / 4 + 5 / 8) / 4)


def test_field_rce_keeps_equal_durations_together_and_leaves_out_missing_ones() -> None:
    by = torch.tensor([1.0, 1, 1, 1, 1, 2, torch.nan])
    label, prediction = torch.ones(7), torch.tensor([0.0, 2, 0, 2, 1, 3, 50])
    score = metric("field_rce@2")(prediction, label, by=by)
    assert score.value == pytest.approx((5 * 0 + 1 * 2) / 6)
    assert score.used == 2


def test_clipping_never_makes_an_error_larger() -> None:
    draw = torch.Generator().manual_seed(0)
    prediction, label = torch.randn(500, generator=draw) * 4, torch.randint(1, 6, (500,), generator=draw).float()
    clipped = value("mse_clipped", prediction, label, range=(1, 5))
    assert clipped == pytest.approx(value("mse", prediction.clamp(1, 5), label), rel=1e-12)
    assert clipped < value("mse", prediction, label)
    assert value("mse_clipped", prediction, label, range=(-100, 100)) == value("mse", prediction, label)


@pytest.mark.parametrize(
    ("name", "what"), [("gauc", "the user column"), ("field_rce", 'by = "column"'), ("mse_clipped", "range = ")]
)
def test_what_a_metric_reads_must_be_given(name: str, what: str) -> None:
    with pytest.raises(ConfigError, match=f"metric '{name}' reads .*{what}"):
        metric(name)(PROBABILITY, BINARY)


@pytest.mark.parametrize(
    ("read", "what"),
    [
        ({"weight": torch.ones(5)}, r"weight must be \[6\], not \[5\]"),
        ({"weight": torch.ones(6, 1)}, r"weight must be \[6\], not \[6, 1\]"),
        ({"weight": torch.full((6,), -1.0)}, "weights must be finite and not below 0"),
        ({"weight": torch.full((6,), torch.nan)}, "weights must be finite and not below 0"),
        ({"group": torch.zeros(6, 1).long()}, r"group must be \[6\]"),
    ],
)
def test_what_does_not_fit_the_rows_raises(read: dict[str, Tensor], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        metric("gauc")(PROBABILITY, BINARY, **({"group": USERS} | read))


@pytest.mark.parametrize("name", ["ece", "pcoc", "ne", "logloss"])
def test_logits_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not logits"):
        metric(name)(torch.tensor([1.5, 0.2]), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    ("name", "entire", "k"),
    [("entire_auc", True, 0), ("entire_ece@5", True, 5), ("ece", False, 15), ("ece@5", False, 5)],
)
def test_names_of_the_entire_space_and_of_bins(name: str, entire: bool, k: int) -> None:
    found = metric(name)
    assert (found.name, found.entire, found.k) == (name, entire, k)
    plain = name.removeprefix("entire_")
    assert found(PROBABILITY, BINARY).value == metric(plain)(PROBABILITY, BINARY).value


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("entire_acu", "Did you mean 'entire_auc'?"),
        ("entire_mse", "metric 'entire_mse' is unknown"),
        ("entire_ndcg@3", "metric 'entire_ndcg' is unknown"),
        ("ece@0", "needs a cut-off of 1 or more"),
        ("gauc@3", "takes no cut-off"),
    ],
)
def test_a_wrong_name_is_a_config_error(name: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        metric(name)
    assert what in str(caught.value)


RATING = {"kind": "regression", "label": "rating"}
CLICK = {"kind": "binary", "label": "click"}


@pytest.mark.parametrize(
    ("options", "metrics", "what"),
    [
        (RATING, ("mse_clipped",), "metric 'mse_clipped' reads the label's range; set range"),
        (RATING, ("mae", "field_rce"), "metric 'field_rce' reads a second column"),
        (RATING, ("ece",), "is not for regression tasks; they take: field_rce@10, mae, mse, mse_clipped, rmse, xauc"),
        (CLICK, ("entire_auc",), 'is for conditional tasks; name the condition with given = "task"'),
        (CLICK, ("coverage@5",), "is not for binary tasks"),
        (CLICK, ("pcoc", "auc"), "metric 'pcoc' chooses no epoch, since near 1 is right; name another"),
    ],
)
def test_metrics_that_do_not_fit_the_task_are_refused(options: dict[str, Any], metrics: Any, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_metrics(Task("task", metrics=metrics, **options))
    assert what in str(caught.value) and "\n" not in str(caught.value)


def test_metrics_that_fit_the_task_pass() -> None:
    check_metrics(
        Task("rating", metrics=("mse", "mse_clipped", "xauc", "field_rce@5"), range=(1, 5), by="length", **RATING)
    )  # type: ignore[arg-type]
    order = Task(
        "order", "binary", label="order", given="click", metrics=("entire_auc", "auc", "pcoc", "gauc", "ece@20")
    )
    check_metrics(order)
    click = Task("click", **CLICK)  # type: ignore[arg-type]
    check_metrics(order, Schema((click, order), user="user"))
    with pytest.raises(ConfigError, match="'gauc' reads users"):
        check_metrics(order, Schema((click, order)))
