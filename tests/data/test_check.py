import json
from typing import Any

import polars as pl
import pytest

from polytask.data.check import Findings, check
from polytask.data.synthetic import synthetic
from polytask.data.table import read_dataset
from polytask.schema import Field, Schema, Task

TASKS = (Task("watch", "ranking"), Task("stars", "regression", label="rating", range=(1, 5)))


def checked(
    tasks: tuple[Task, ...] = TASKS, fields: tuple[Field, ...] = (), time: str | None = "ts", **columns: Any
) -> Findings:
    n = len(next(iter(columns.values()))) if columns else 120
    plain: dict[str, Any] = {"user": [f"u{k % 12}" for k in range(n)], "item": [f"i{k % 30}" for k in range(n)]}
    plain |= {"rating": [1 + k % 5 for k in range(n)], "ts": [10**9 + k for k in range(n)]}
    schema = Schema(user="user", item="item", time=time, tasks=tasks, fields=fields)
    return check(read_dataset(pl.DataFrame(plain | columns), schema, name="plain"))


def test_a_clean_data_set_has_no_warning_and_right_counts() -> None:
    found = checked()
    assert found.warnings == ()
    assert (found.users, found.items, found.rows, found.density) == (12, 30, 120, 120 / 360)
    assert (found.read, found.accepted, found.rejected, found.duplicate_rows) == (120, 120, 0, 0)
    assert found.duplicate_pairs == 60
    stars = found.labels[1]
    assert (stars.mean, stars.minimum, stars.maximum, stars.coverage, stars.base) == (3.0, 1.0, 5.0, 1.0, None)
    assert [c.role for c in found.columns] == ["user", "item", "time", "label of stars"]
    assert found.lines()[0] == "plain: 120 rows read = 120 accepted + 0 rejected"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["labels"][1]["mean"] == 3.0


def test_rejected_rows_are_shown() -> None:
    found = checked(rating=[9 if k == 7 else 3 + k % 2 for k in range(200)])
    assert (found.read, found.accepted, found.rejected) == (200, 199, 1)
    assert any("interactions row 8: rating 9 is outside 1..5" in line for line in found.lines())


def test_base_rate_of_a_condition_and_of_a_binary_label() -> None:
    tasks = (Task("like", "binary", positive="rating >= 4"), Task("click", "binary", label="clicked"))
    found = checked(tasks, clicked=[k % 4 == 0 for k in range(120)])
    assert [label.base for label in found.labels] == [0.4, 0.25]


BINARY = (Task("buy", "binary", label="bought"),)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rating": [3] * 120}, "task 'stars': rating is constant"),
        ({"rating": [None] * 120}, "no value in any row"),
        ({"rating": [3 + k % 2 if k < 50 else None for k in range(120)]}, "missing in 58.3 % of the rows"),
        ({"tasks": BINARY, "bought": [int(k == 3) for k in range(240)]}, "positive in 0.417 % of its rows"),
        ({"tasks": BINARY, "bought": [int(k != 3) for k in range(240)]}, "positive in 99.6 % of its rows"),
        ({"tasks": BINARY, "bought": [0] * 120}, "bought is constant"),
        ({"user": ["rare"] + [f"u{k % 12}" for k in range(119)]}, "1 of 13 users have fewer than 3 rows"),
        ({"item": ["once"] + [f"i{k % 30}" for k in range(119)]}, "1 of 31 items are seen once"),
        ({"item": [f"i{k % 30}" if k % 5 else "hit" for k in range(120)]}, "item 'hit' has 24 of 120 rows (20 %)"),
        ({"ts": [(10**9 + k) * 1000 for k in range(120)]}, "as milliseconds: divide by 1,000"),
        ({"ts": list(range(120))}, "120 of 120 times in ts lie outside 1990..2100, the first is 0"),
        ({"time": None}, "a temporal split is impossible"),
        ({"user": ["e\u0301" if k % 2 else "\xe9" for k in range(120)]}, "2 user ids differ only in Unicode form"),
        ({"user": ["a" if k % 2 else " a" for k in range(120)]}, "as ' a', 'a'; they count as different"),
        (
            {"fields": (Field("tag"),), "tag": [f"t{k}" for k in range(120)]},
            "field 'tag' has 120 different values in 120",
        ),
        ({"user": ["u"] * 120, "item": ["i"] * 120, "ts": [10**9] * 120}, "115 of 120 rows are exact copies"),
    ],
)
def test_each_warning_has_its_numbers(options: dict[str, Any], expected: str) -> None:
    warnings = checked(**options).warnings
    assert any(expected in warning for warning in warnings), warnings
    assert all("\n" not in warning for warning in warnings)


def test_rows_outside_the_side_tables_are_counted() -> None:
    data = pl.DataFrame({"user": ["a", "b"] * 30, "item": [f"i{k % 30}" for k in range(60)], "rating": [1, 2, 3] * 20})
    schema = Schema(user="user", item="item", tasks=TASKS)
    found = check(read_dataset(data, schema, users=pl.DataFrame({"user": ["a"]})))
    assert any("30 of 60 rows have a user that is not in the users table" in w for w in found.warnings)


def test_data_without_users_and_items() -> None:
    schema = Schema(tasks=(Task("income", "binary", label="y"),), fields=(Field("job"),))
    found = check(read_dataset(pl.DataFrame({"job": ["a", "b"] * 20, "y": [0, 1] * 20}), schema))
    assert (found.users, found.items, found.density, found.duplicate_pairs) == (None, None, None, 0)
    assert found.lines()


def test_synthetic_data_are_clean() -> None:
    assert check(synthetic(60, 80, 2400)).warnings == ()
