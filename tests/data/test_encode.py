from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from polytask.data.encode import Encoder, fit_encoder
from polytask.data.table import Dataset, read_dataset
from polytask.schema import Field, Input, Schema, Task

TASKS = (Task("watch", "ranking"), Task("stars", "regression", label="rating"))


def log(**columns: Any) -> pl.DataFrame:
    """Six rows, in no order; columns given replace or add."""
    plain: dict[str, Any] = {
        "user": ["u2", "u1", "u2", "u3", "u1", "u3"],
        "item": ["b", "a", "c", "a", "c", "b"],
        "rating": [4, 2, 5, 1, 3, None],
    }
    return pl.DataFrame(plain | columns)


def dataset(table: pl.DataFrame, *fields: Field, tasks: tuple[Task, ...] = TASKS, **sides: pl.DataFrame) -> Dataset:
    return read_dataset(table, Schema(tasks, fields, user="user", item="item"), **sides)


def fitted(data: Dataset, rows: list[int] | None = None) -> Encoder:
    return fit_encoder(data, np.arange(data.interactions.height) if rows is None else np.array(rows))


def labels(*tasks: Task, table: pl.DataFrame | None = None) -> list[list[float]]:
    data = dataset(log() if table is None else table, tasks=tasks)
    found = fitted(data).labels(data.interactions)
    assert found.dtype == torch.float32
    return found.T.tolist()


def test_without_side_tables_the_vocabulary_is_the_sorted_training_ids() -> None:
    encoder = fitted(dataset(log()), rows=[0, 1, 2])
    assert encoder.vocabularies["user"].to_list() == ["u1", "u2"]
    assert encoder.vocabularies["item"].to_list() == ["a", "b", "c"]
    assert encoder.inputs == (Input("user", "category", "user", 3), Input("item", "category", "item", 4))


def test_a_side_table_is_the_catalogue_in_its_own_order() -> None:
    items = pl.DataFrame({"item": ["c", "z", "a", "b"]})
    encoder = fitted(dataset(log(), items=items), rows=[0])
    assert encoder.vocabularies["item"].to_list() == ["c", "z", "a", "b"]
    assert encoder.vocabularies["user"].to_list() == ["u2"]
    assert encoder.items is not None and len(encoder.items) == 5


def test_unknown_is_0_and_belongs_to_nobody() -> None:
    encoder = fitted(dataset(log()), rows=[0, 1, 2])
    found = encoder.index("user", pl.Series(["u1", "u3", "u2", None, "U1", ""]))
    assert found.tolist() == [1, 0, 2, 0, 0, 0] and found.dtype == torch.int64
    assert encoder.raw("user", 0) is None
    assert [encoder.raw("user", i) for i in (1, 2)] == ["u1", "u2"]


def test_ids_are_told_apart_byte_by_byte() -> None:
    ids = ["007", "7", "7.0", " 7", "NaN", "null", "é", "e\u0301", "9007199254740993", "9007199254740992", "a\tb", "A"]
    table = pl.DataFrame({"user": ids, "item": ["x"] * len(ids), "rating": [3] * len(ids)})
    encoder = fitted(dataset(table))
    found = encoder.index("user", pl.Series(ids))
    assert sorted(found.tolist()) == list(range(1, len(ids) + 1))
    assert [encoder.raw("user", int(i)) for i in found] == ids


def test_indexing_keeps_the_order_of_the_rows() -> None:
    draw = np.random.default_rng(0)
    users = [f"u{k}" for k in draw.integers(0, 50, 400)]
    table = pl.DataFrame({"user": users, "item": ["x"] * 400, "rating": [3] * 400})
    encoder = fitted(dataset(table))
    assert [encoder.raw("user", int(i)) for i in encoder.index("user", table["user"])] == users


def test_a_number_is_standardized_by_the_training_rows() -> None:
    table = log(price=[1.0, 2.0, 6.0, None, 1e9, -1e9])
    data = dataset(table, Field("price", "number"))
    encoder = fitted(data, rows=[0, 1, 2, 3])
    mean, scale = encoder.scales["price"]
    assert (mean, scale) == (pytest.approx(3.0), pytest.approx(np.std([1, 2, 6], ddof=1)))
    context = encoder.side(data.interactions, "context")
    assert context.ids.tolist() == [[0]] * 6
    assert context.numbers[:3, 0].tolist() == pytest.approx([(v - 3) / scale for v in (1, 2, 6)])
    assert context.numbers[3, 0] == 0  # a missing number is the mean


@pytest.mark.parametrize("values", [[5.0] * 6, [5.0, None, None, None, None, None], [None] * 6])
def test_a_number_that_never_varies_stays_finite(values: list[float | None]) -> None:
    data = dataset(log(price=pl.Series(values, dtype=pl.Float64)), Field("price", "number"))
    encoder = fitted(data)
    assert encoder.side(data.interactions, "context").numbers.tolist() == [[0.0]] * 6


def test_fields_of_every_side_are_encoded_on_their_side() -> None:
    users = pl.DataFrame({"user": ["u1", "u2", "u3"], "age": [20, 30, 70], "sex": ["f", "m", "f"]})
    items = pl.DataFrame({"item": ["a", "b", "c"], "genre": ["war", None, "art"]})
    fields = (Field("device", "category"), Field("genre", side="item"), Field("sex", side="user"))
    data = dataset(log(device=list("xyxyxz")), *fields, Field("age", "number", "user"), users=users, items=items)
    encoder = fitted(data, rows=[0, 1, 2, 3])
    assert [(i.name, i.side, i.size) for i in encoder.inputs] == [
        ("user", "user", 4), ("sex", "user", 3), ("age", "user", 1), ("item", "item", 4), ("genre", "item", 3),
        ("device", "context", 3),
    ]  # fmt: skip
    assert encoder.users is not None and encoder.items is not None
    assert encoder.users.ids.tolist() == [[0, 0, 0], [1, 1, 0], [2, 2, 0], [3, 1, 0]]
    assert encoder.users.numbers[:, :2].tolist() == [[1, 1]] * 4
    assert encoder.users.numbers[1:, 2].tolist() == pytest.approx([(a - 40) / 26.457513 for a in (20, 30, 70)])
    assert encoder.users.numbers[0].tolist() == [1, 1, 0]  # the unknown user is of mean age
    assert encoder.items.ids.tolist() == [[0, 0], [1, 1], [2, 0], [3, 2]]
    assert encoder.side(data.interactions, "context").ids[:, 0].tolist() == [1, 2, 1, 2, 1, 0]  # z is not in train


def test_numbers_of_users_are_standardized_by_the_users_in_train() -> None:
    ages = ([20.0, 30.0, 40.0], [20.0, 30.0, 1e9])  # u3 has no training row
    tables = [pl.DataFrame({"user": ["u1", "u2", "u3"], "age": a}) for a in ages]
    found = [fitted(dataset(log(), Field("age", "number", "user"), users=t), rows=[0, 1, 2]).scales for t in tables]
    assert found[0] == found[1] == {"age": (pytest.approx(25), pytest.approx(np.std([20, 30], ddof=1)))}


def artefacts(encoder: Encoder) -> list[Any]:
    sides = [s for s in (encoder.users, encoder.items) if s is not None]
    values = [(n, v.to_list()) for n, v in sorted(encoder.vocabularies.items())]
    return [
        encoder.inputs,
        values,
        sorted(encoder.scales.items()),
        [(s.ids.tolist(), s.numbers.tolist()) for s in sides],
    ]


def test_rows_outside_train_leave_no_trace_in_what_is_fitted() -> None:
    fields = (Field("price", "number"), Field("device"))
    columns: dict[str, list[Any]] = {"price": [1.0, 2.0, 6.0, 4.0, 5.0, 6.0], "device": list("xyxyxy")}
    garbage: dict[str, list[Any]] = {"price": [1.0, 2.0, 6.0, 1e12, -1e12, None], "device": list("xyx?!~")}
    garbage |= {"user": ["u2", "u1", "u2", "!", "!", "~"], "item": ["b", "a", "c", "!", "#", "~"]}
    plain, dirty = (fitted(dataset(log(**c), *fields), rows=[0, 1, 2]) for c in (columns, garbage))
    assert artefacts(plain) == artefacts(dirty)


def test_a_binary_task_reads_0_and_1_or_a_condition() -> None:
    clicks = log(clicked=[1, 0, None, 1, 0, 1])
    found = labels(
        Task("click", "binary", label="clicked"), Task("like", "binary", positive="rating >= 4"), table=clicks
    )
    np.testing.assert_equal(found, [[1, 0, np.nan, 1, 0, 1], [1, 0, 1, 0, 0, np.nan]])


def test_a_ranking_task_has_positives_and_nothing_else() -> None:
    found = labels(Task("watch", "ranking"), Task("like", "ranking", positive="rating >= 4"))
    np.testing.assert_equal(found, [[1] * 6, [1, np.nan, 1, np.nan, np.nan, np.nan]])


def test_a_ranking_task_with_a_label_takes_the_rows_above_0() -> None:
    found = labels(Task("watch", "ranking", label="plays"), table=log(plays=[0.0, 1.0, 7.0, None, -1.0, 0.5]))
    np.testing.assert_equal(found, [[np.nan, 1, 1, np.nan, np.nan, 1]])


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("rating >= 3", [1, 0, 1, 0, 1]),
        ("rating > 3", [1, 0, 1, 0, 0]),
        ("rating <= 3", [0, 1, 0, 1, 1]),
        ("rating < 3", [0, 1, 0, 1, 0]),
        ("rating == 3", [0, 0, 0, 0, 1]),
        ("rating != 3", [1, 1, 1, 1, 0]),
    ],
)
def test_every_comparison_means_what_it_says(condition: str, holds: list[int]) -> None:
    (found,) = labels(Task("like", "binary", positive=condition))
    np.testing.assert_equal(found, [*holds, np.nan])


def test_a_missing_regression_label_is_nan() -> None:
    np.testing.assert_equal(labels(Task("stars", "regression", label="rating")), [[4, 2, 5, 1, 3, np.nan]])
