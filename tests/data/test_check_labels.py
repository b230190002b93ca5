"""Labels of several tasks together: overlap, correlation, conditions, and the columns beside the label."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.data.check import Findings, check
from polytask.data.labels import together
from polytask.data.table import read_dataset
from polytask.errors import DataError
from polytask.schema import Schema, Task

CLICK, BUY = Task("click", "binary", label="click"), Task("buy", "binary", label="buy", given="click")
WATCH = Task("watch", "regression", label="watch", by="duration")
WEIGHED = Task("stars", "regression", label="stars", row_weight="weight")


def checked(*tasks: Task, **columns: Any) -> Findings:
    return check(read_dataset(pl.DataFrame(columns), Schema(tasks)))


def warned(found: Findings) -> str:
    return "\n".join(found.warnings)


def test_overlap_and_correlation_of_two_labels_by_hand() -> None:
    a, b = [1, 1, 0, 0, None, 1, None, None], [1, 1, 0, 1, 1, None, None, 0]
    found = checked(Task("a", "binary", label="a"), Task("b", "binary", label="b"), a=a, b=b).together
    assert found.share == ((5 / 8, 4 / 8), (4 / 8, 6 / 8))
    assert found.correlation[0][1] == pytest.approx(1 / np.sqrt(3))  # phi of 1 1 0 0 and 1 1 0 1
    assert (found.correlation[0][0], found.correlation[1][1]) == pytest.approx((1.0, 1.0))


@given(st.lists(st.tuples(*[st.none() | st.integers(-3, 3).map(float)] * 3), min_size=1, max_size=30))
def test_correlations_are_those_of_numpy_over_the_rows_that_have_both(rows: list[tuple[float | None, ...]]) -> None:
    frame = pl.DataFrame(rows, schema=["a", "b", "c"], orient="row").cast(pl.Float64)
    found = together(frame, [Task(n, "regression", label=n) for n in "abc"])
    for i, x in enumerate("abc"):
        for j, y in enumerate("abc"):
            both = frame.filter(pl.col(x).is_not_null() & pl.col(y).is_not_null())
            assert found.share[i][j] == both.height / frame.height
            u, v = both[x].to_numpy(), both[y].to_numpy()
            if both.height < 2 or not u.std() or not v.std():
                assert found.correlation[i][j] is None
            else:
                assert found.correlation[i][j] == pytest.approx(np.corrcoef(u, v)[0, 1], abs=1e-9)


def test_tasks_that_never_meet_are_named() -> None:
    found = checked(
        CLICK, Task("stars", "regression", label="stars"), click=[0, 1, None, None], stars=[None, None, 2, 4]
    )
    assert found.together.share == ((0.5, 0.0), (0.0, 0.5)) and found.together.correlation[0][1] is None
    assert "tasks 'click' and 'stars' have labels in 0 rows together" in warned(found)
    lines = found.lines()
    at = next(n for n, line in enumerate(lines) if line.startswith("rows with both labels, %"))
    assert lines[at + 1].split() == ["click", "50", "0"] and lines[at + 2].split() == ["stars", "0", "50"]
    shown = [line for line in lines if "correlation" in line]
    assert len(shown) == 1 and lines[lines.index(shown[0]) + 1].split() == ["click", "1.00", "-"]


def test_a_label_with_no_value_at_all_is_warned_of_once() -> None:
    found = checked(CLICK, Task("stars", "regression", label="stars"), click=[0, 1], stars=[None, None])
    assert "stars has no value" in warned(found) and "together" not in warned(found)


def test_one_label_twice_is_named_but_not_two_conditions_on_one_column() -> None:
    y = [k % 2 for k in range(40)]
    found = checked(CLICK, Task("again", "binary", label="again"), click=y, again=[1 - v for v in y])
    assert "tasks 'click' and 'again' are nearly one label (correlation -1.0000)" in warned(found)
    low = (Task("a", "binary", positive="x >= 1"), Task("b", "binary", positive="x > 0"))
    assert "nearly one" not in warned(checked(*low, x=y))


def test_positives_without_their_condition_are_counted() -> None:
    click, buy = [1, 1, 0, 0, None, 1] * 20, [1, 0, 1, 0, 1, None] * 20
    found = checked(CLICK, BUY, click=click, buy=buy)
    assert "given 'click', but 20 of its 60 positives have click = 0 and 20 have none" in warned(found)
    good = checked(CLICK, BUY, click=[1, 1, 0, 0] * 20, buy=[1, 0, 0, None] * 20)
    assert "given" not in warned(good)


def test_a_duration_that_is_missing_or_zero_counts_only_where_there_is_a_label() -> None:
    found = checked(WATCH, watch=[1.0, 2.0, 3.0, 4.0, None, 5.0], duration=[9.0, None, 0.0, -1.0, None, 9.0])
    assert "by = 'duration' is missing in 1 and 0 or less in 2 of the 5 rows with a label" in warned(found)
    good = checked(WATCH, watch=[1.0, None, 3.0], duration=[9.0, None, 2.0])
    assert "duration" not in warned(good)
    assert {c.name: c.role for c in good.columns} == {"watch": "label of watch", "duration": "by of watch"}


@pytest.mark.parametrize(
    ("weight", "says"),
    [(-1.0, "row 7: weight -1.0 is below 0 (row_weight of task 'stars')"), (None, "row 7: weight is empty")],
)
def test_a_negative_or_missing_row_weight_is_a_rejected_row(weight: float | None, says: str) -> None:
    weights = [weight if k == 6 else 1.0 for k in range(200)]
    frame = pl.DataFrame({"stars": [k % 5 for k in range(200)], "weight": weights})
    data = read_dataset(frame, Schema((WEIGHED,)))
    assert (data.interactions.height, data.rejects.count) == (199, 1)
    assert says in str(data.rejects.rows[0])
    with pytest.raises(DataError, match="over 1 %"):
        read_dataset(frame.head(50), Schema((WEIGHED,)))


def test_a_row_without_a_label_needs_no_weight_and_zero_leaves_a_row_out() -> None:
    columns = {"stars": [None, 2.0, 3.0], "weight": [None, 0.0, 1.0]}
    data = read_dataset(pl.DataFrame(columns), Schema((WEIGHED,)))
    assert data.interactions.height == 3


def test_weights_that_leave_little_are_named() -> None:
    stars = [k % 5 for k in range(300)]
    assert "is 0 in all of its 300 rows" in warned(checked(WEIGHED, stars=stars, weight=[0.0] * 300))
    steep = [1000.0 if k < 2 else 0.001 for k in range(300)]
    assert "300 rows count like 2:" in warned(checked(WEIGHED, stars=stars, weight=steep))
    even = checked(WEIGHED, stars=stars, weight=[1.0 + k % 2 for k in range(300)])
    assert "weight" not in warned(even)


def test_repeated_pairs_with_labels_that_differ() -> None:
    tasks = (CLICK, Task("stars", "regression", label="stars"))
    rows = {"u": ["a", "a", "b", "b", "c", "c"], "i": list("xxyyzz"), "click": [0, 1, 1, 1, 0, None]}
    rows["stars"] = [1, 2, 2, 3, 4, 4]
    found = check(read_dataset(pl.DataFrame(rows), Schema(tasks, user="u", item="i")))
    assert found.duplicate_pairs == 3
    assert "of 3 repeated (user, item) pairs the labels differ, click in 1, stars in 2" in warned(found)
