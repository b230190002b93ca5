"""Columns that know the answer, columns that teach nothing, and the biases of the log."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.data.bias import popularity
from polytask.data.check import Findings, check
from polytask.data.leaks import LEAST, Leak
from polytask.data.table import Dataset, read_dataset
from polytask.schema import Field, Schema, Task

DRAW = np.random.default_rng(3)
N = 1000
CLICK = DRAW.random(N) < 0.3
STARS = DRAW.integers(1, 6, N)
NOISE = DRAW.standard_normal(N)
TASKS = (Task("click", "binary", label="click"), Task("stars", "regression", label="stars"))


def checked(field: Field, values: Any, tasks: tuple[Task, ...] = TASKS, **columns: Any) -> Findings:
    frame = pl.DataFrame({"click": CLICK.astype(int), "stars": STARS} | columns | {field.name: values})
    return check(read_dataset(frame, Schema(tasks, (field,))))


def leaking(field: Field, values: Any, tasks: tuple[Task, ...] = TASKS) -> list[str]:
    return [leak.task for leak in checked(field, values, tasks).leaks]


NUMBER, CATEGORY = Field("x", "number"), Field("x")


@pytest.mark.parametrize(
    ("field", "values", "tasks"),
    [
        (CATEGORY, np.where(CLICK, "refund", "none"), ["click"]),
        (CATEGORY, [f"{c}{k % 9}" for k, c in enumerate(CLICK)], ["click"]),
        (CATEGORY, [None if c else "seen" for c in CLICK], ["click"]),
        (NUMBER, np.where(CLICK, 5 + NOISE, -5 + NOISE), ["click"]),
        (NUMBER, np.where(CLICK, -5 + NOISE, 5 + NOISE), ["click"]),
        (NUMBER, [float(v) if c else None for c, v in zip(CLICK, 9 + NOISE, strict=True)], ["click"]),
        (NUMBER, np.where(CLICK, 0, np.where(NOISE > 0, 1, -1)), ["click"]),  # in the middle, so its order says little
        (NUMBER, STARS + 0.01 * NOISE, ["stars"]),
        (NUMBER, np.exp(-3.0 * STARS), ["stars"]),
        (CATEGORY, [f"grade {s}" for s in STARS], ["stars"]),
        (CATEGORY, [f"{c} {s}" for c, s in zip(CLICK, STARS, strict=True)], ["click", "stars"]),
        (NUMBER, NOISE, []),
        (NUMBER, CLICK + NOISE, []),
        (CATEGORY, DRAW.integers(9, size=N), []),
        (CATEGORY, [f"{k}{c}" for k, c in enumerate(CLICK)], []),  # every value seen once
        (CATEGORY, ["one"] * N, []),
    ],
)
def test_a_column_that_alone_predicts_a_label(field: Field, values: Any, tasks: list[str]) -> None:
    assert leaking(field, values) == tasks


def test_a_leak_is_one_sentence_with_its_numbers() -> None:
    found = checked(CATEGORY, np.where(CLICK, "refund", "none"))
    assert found.leaks == (Leak("x", "click", "AUC", 1.0, N // 2),)
    said = [w for w in found.warnings if "alone predicts" in w]
    assert said == [str(found.leaks[0])] and "task 'click' with AUC 1.0000 on 500 rows" in said[0]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["leaks"][0]["value"] == 1.0


def test_few_rows_or_few_of_a_class_give_no_verdict() -> None:
    few = 2 * LEAST - 2
    found = check(
        read_dataset(
            pl.DataFrame({"click": CLICK[:few].astype(int), "x": CLICK[:few].astype(str)}),
            Schema(TASKS[:1], (CATEGORY,)),
        )
    )
    assert found.leaks == ()
    rare = np.arange(N) % 100 == 0
    frame = pl.DataFrame({"click": rare.astype(int), "x": rare.astype(str)})
    assert check(read_dataset(frame, Schema(TASKS[:1], (CATEGORY,)))).leaks == ()


def test_a_conditional_task_is_judged_where_its_condition_held() -> None:
    buy = CLICK & (NOISE > 0)
    tasks = (TASKS[0], Task("buy", "binary", label="buy", given="click"))
    frame = {"click": CLICK.astype(int), "buy": buy.astype(int)}
    for values, expected in ((CLICK, ["click"]), (NOISE > 0, ["buy"])):
        data = pl.DataFrame(frame | {"x": values.astype(str)})
        assert [leak.task for leak in check(read_dataset(data, Schema(tasks, (CATEGORY,)))).leaks] == expected


def test_a_column_of_the_items_table_leaks_too() -> None:
    item = DRAW.integers(30, size=N)
    frame = pl.DataFrame({"u": np.arange(N) % 50, "i": item, "click": (item % 3 == 0).astype(int)})
    items = pl.DataFrame({"i": range(30), "kind": ["hit" if k % 3 == 0 else "miss" for k in range(30)]})
    data = read_dataset(frame, Schema(TASKS[:1], (Field("kind"),), user="u", item="i"), items=items)
    assert [(leak.field, leak.value) for leak in check(data).leaks] == [("kind", 1.0)]


BAG = Field("x", "categories", length=2)


@pytest.mark.parametrize(
    ("field", "values", "says"),
    [
        (CATEGORY, ["same"] * N, "field 'x' is 'same' in all of 1,000 rows"),
        (NUMBER, [2.0] * N, "field 'x' is '2.0' in all of 1,000 rows"),
        (CATEGORY, [None] * N, "field 'x' has no value in any of 1,000 rows"),
        (CATEGORY, [f"v{k if k < 50 else k % 10}" for k in range(N)], "40 of its 50 values are seen once"),
        (CATEGORY, [f"v{k if k < 50 else k % 10}" for k in range(N)], "set min_count = 2, which keeps 10, or buckets"),
        (
            NUMBER,
            [1e6 if k == 3 else float(k % 7) for k in range(N)],
            "1e+06 lies 32 standard deviations from the mean",
        ),
        (NUMBER, [-1e6 if k == 3 else float(k % 7) for k in range(N)], 'set scale = "log"'),
        (
            BAG,
            ["a|b|c" if k == 3 else "a|b" for k in range(N)],
            "1 of 1,000 rows hold more than length = 2 values, up to 3",
        ),
    ],
)
def test_columns_that_teach_nothing(field: Field, values: Any, says: str) -> None:
    assert any(says in w for w in checked(field, values).warnings), checked(field, values).warnings


@pytest.mark.parametrize(
    ("field", "values"),
    [
        (CATEGORY, ["same" if k else None for k in range(N)]),
        (Field("x", min_count=2), [f"v{k if k < 50 else k % 10}" for k in range(N)]),
        (Field("x", buckets=8), [f"v{k}" for k in range(N)]),
        (Field("x", "number", scale="log"), [1e6 if k == 3 else float(k % 7) for k in range(N)]),
        (NUMBER, DRAW.exponential(size=N)),
        (BAG, ["a||a|b" if k % 2 else None for k in range(N)]),  # empty and repeated values are not read
    ],
)
def test_columns_that_are_as_they_should_be(field: Field, values: Any) -> None:
    assert not [w for w in checked(field, values).warnings if "'x'" in w]


def log(user: list[Any], item: list[Any], time: list[float] | None = None) -> Dataset:
    columns: dict[str, Any] = {"u": user, "i": item} | ({} if time is None else {"t": time})
    schema = Schema((Task("watch", "ranking"),), user="u", item="i", time=None if time is None else "t")
    return read_dataset(pl.DataFrame(columns), schema)


def test_popularity_by_hand() -> None:
    even = popularity(log(list(range(100)), list(range(100))))
    assert even is not None and (even.top_1, even.top_10, even.gini) == (0.01, 0.1, 0.0)
    items = [0] * 91 + list(range(1, 10))  # ten items, one with 91 rows
    found = popularity(log(list(range(100)), items))
    assert found is not None and (found.top_1, found.top_10) == (0.91, 0.91)
    assert found.gini == pytest.approx(0.81)  # Lorenz curve: 9 items hold 9 %, so G = 0.9 - 0.09
    assert "91 % of the rows are on 10 % of the items (Gini 0.810)" in "\n".join(
        check(log(list(range(100)), items)).warnings
    )


@given(st.lists(st.integers(0, 8), min_size=1, max_size=60))
def test_gini_is_the_mean_difference_of_all_pairs(items: list[int]) -> None:
    found = popularity(log(list(range(len(items))), items))
    counts = np.unique(items, return_counts=True)[1].astype(float)
    expected = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean())
    assert found is not None and found.gini == pytest.approx(expected, abs=1e-12)
    assert 0 < found.top_1 <= found.top_10 <= 1


def test_time_travel_of_a_random_split() -> None:
    once = check(log([f"u{k}" for k in range(100)], [k % 9 for k in range(100)], [1e9 + k for k in range(100)]))
    assert once.time_travel == 0.0  # no user comes twice
    often = check(log([f"u{k % 2}" for k in range(1000)], [k % 9 for k in range(1000)], [1e9 + k for k in range(1000)]))
    assert often.time_travel is not None and often.time_travel > 0.97
    assert any("of the test rows have later rows of their user" in line for line in often.lines())
    still = check(log([f"u{k % 2}" for k in range(1000)], [k % 9 for k in range(1000)], [1e9] * 1000))
    assert still.time_travel == 0.0  # all at once is not later
    assert check(log(["a"] * 9, [1] * 9)).time_travel is None


def test_the_same_data_have_the_same_findings() -> None:
    values = np.where(CLICK, 5 + NOISE, -5 + NOISE)
    assert checked(NUMBER, values).to_dict() == checked(NUMBER, values).to_dict()
