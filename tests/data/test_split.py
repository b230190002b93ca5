from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.data.batch import Part
from polytask.data.split import SPLITS, Split, split
from polytask.data.synthetic import synthetic
from polytask.data.table import Dataset, read_dataset
from polytask.errors import ConfigError, DataError
from polytask.schema import Schema, Task

DATA = synthetic(users=40, items=60, rows=1000, seed=5)
SHARED = [kind for kind in SPLITS if kind != "official"]  # kinds that both shares decide
TASKS = (Task("watch", "ranking"), Task("row", "regression", label="row"))


def numbered(data: Dataset = DATA) -> Dataset:
    """The same rows with their number as a label, so that a part tells which rows it holds."""
    table = data.interactions.with_columns(row=pl.int_range(pl.len()).cast(pl.Float64))
    schema = Schema(TASKS, user="user_id", item="item_id", time="timestamp")
    return replace(data, schema=schema, interactions=table)


def rows(part: Part | None) -> list[int]:
    return [] if part is None else part.labels[:, 1].long().tolist()


def parts(cut: Split) -> list[list[int]]:
    return [rows(cut.train), rows(cut.valid), rows(cut.test)]


def small(user: list[str], item: list[str] | None = None, **columns: Any) -> Dataset:
    items = item or [f"i{k}" for k in range(len(user))]
    table = pl.DataFrame({"user_id": user, "item_id": items, "row": range(len(user)), "timestamp": range(len(user))})
    schema = Schema(TASKS, user="user_id", item="item_id", time="timestamp")
    return read_dataset(table.with_columns(**{k: pl.Series(v) for k, v in columns.items()}), schema)


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize(("valid", "test"), [(0.05, 0.1), (0.0, 0.1), (0.1, 0.0), (0.0, 0.0)])
def test_parts_are_disjoint_and_complete(kind: str, valid: float, test: float) -> None:
    cut = split(numbered(), kind, valid=valid, test=test, seed=1)
    assert sorted(row for part in parts(cut) for row in part) == list(range(1000))
    assert (cut.valid is None, cut.test is None) == (valid == 0, test == 0)
    assert [p.name for p in (cut.train, cut.valid, cut.test) if p] == [
        "train",
        *["valid"] * (valid > 0),
        *["test"] * (test > 0),
    ]


@pytest.mark.parametrize("kind", ["random", "temporal", "exercise"])
@given(valid=st.floats(0, 0.45), test=st.floats(0, 0.45))
@settings(max_examples=10)
def test_sizes_are_the_shares_rounded(kind: str, valid: float, test: float) -> None:
    found = [len(p) for p in SPLITS[kind](DATA, valid, test, 0)]
    assert found[1:] == [round(1000 * valid), round(1000 * test)] and sum(found) == 1000


@pytest.mark.parametrize("kind", SHARED)
def test_the_seed_decides(kind: str) -> None:
    first, again, other = (parts(split(numbered(), kind, valid=0.1, test=0.1, seed=s)) for s in (3, 3, 4))
    assert first == again
    assert (first != other) == (kind in ("random", "per_user", "exercise"))


def test_random_takes_every_row_equally_often() -> None:
    hits = np.zeros(1000)
    for seed in range(200):
        hits[SPLITS["random"](DATA, 0.0, 0.5, seed)[2]] += 1
    assert abs(hits - 100).max() < 5 * np.sqrt(50)  # binomial(200, 1/2): standard deviation 7.07


def test_temporal_never_trains_on_what_comes_later() -> None:
    draw = np.random.default_rng(0)
    data = numbered()
    shuffled = replace(data, interactions=data.interactions[draw.permutation(1000)])
    cut = split(shuffled, "temporal", valid=0.1, test=0.2)
    time = data.interactions["timestamp"].to_numpy()
    train, valid, test = (time[p] for p in parts(cut))
    assert train.max() <= valid.min() <= valid.max() <= test.min()


def test_temporal_keeps_the_order_of_rows_of_one_moment() -> None:
    data = small(["u"] * 10, timestamp=[7] * 10)
    assert parts(split(data, "temporal", valid=0.2, test=0.2)) == [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9]]


def test_leave_last_takes_the_last_two_of_every_user() -> None:
    #                0    1    2    3    4    5    6    7    8    9
    data = small(["a", "b", "a", "a", "b", "b", "b", "c", "c", "d"], timestamp=[9, 1, 3, 5, 2, 4, 3, 1, 2, 5])
    cut = split(data, "leave_last", valid=0.05, test=0.05)
    assert (rows(cut.valid), rows(cut.test)) == ([3, 6], [0, 5])
    assert rows(cut.train) == [1, 2, 4, 7, 8, 9]  # c and d have fewer than three rows


@pytest.mark.parametrize(("valid", "test"), [(0.05, 0.05), (0.0, 0.05), (0.05, 0.0)])
def test_leave_last_never_trains_on_what_the_user_did_later(valid: float, test: float) -> None:
    data = numbered()
    user, time = data.interactions["user_id"].to_numpy(), data.interactions["timestamp"].to_numpy()
    train, valids, tests = (np.array(p, dtype=int) for p in parts(split(data, "leave_last", valid=valid, test=test)))
    held = [p for p in (valids, tests) if len(p)]
    assert [sorted(user[p]) == sorted(set(user)) for p in held] == [True] * len(held)
    for earlier, later in zip([train, *held], held, strict=False):
        for one in later:
            assert time[earlier][user[earlier] == user[one]].max() <= time[one]


def test_per_user_takes_the_shares_of_every_user() -> None:
    data = numbered()
    user = data.interactions["user_id"].to_numpy()
    train, valid, test = parts(split(data, "per_user", valid=0.1, test=0.2, seed=2))
    for one in set(user):
        count = (user == one).sum()
        assert [(user[p] == one).sum() for p in (valid, test)] == [np.rint(count * 0.1), np.rint(count * 0.2)]
    assert len(train) > 0


@pytest.mark.parametrize("valid", [0.0, 0.1])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_exercise_is_the_published_shuffle(valid: float, seed: int) -> None:
    order = np.arange(1000)
    np.random.RandomState(seed).shuffle(order)
    train, valids, test = parts(split(numbered(), "exercise", valid=valid, test=0.05, seed=seed))
    assert train + valids == order[:950].tolist()
    assert valids == order[950 - round(1000 * valid) : 950].tolist()
    assert test == order[950:].tolist()


def keys(user: torch.Tensor, item: torch.Tensor) -> set[tuple[int, int]]:
    return set(zip(user.tolist(), item.tolist(), strict=True))


def test_known_are_the_pairs_of_the_parts_before() -> None:
    cut = split(DATA, "random", valid=0.1, test=0.1)
    assert cut.valid is not None and cut.test is not None
    train, valid = keys(cut.train.user, cut.train.item), keys(cut.valid.user, cut.valid.item)
    assert keys(cut.train.known.user, cut.train.known.item) == set()
    assert keys(cut.valid.known.user, cut.valid.known.item) == train
    assert keys(cut.test.known.user, cut.test.known.item) == train | valid


def test_heldout_leaves_out_repeats_the_unknown_and_what_was_known_before() -> None:
    #  train:   a-x      b-y  a-y  c-x; the rest are test: a-z is new, b-y known, a-z again, c-q has an unknown item
    user, item = ["a", "b", "a", "c", "c", "a", "b", "a", "c", "d"], ["x", "y", "y", "z", "x", "z", "y", "z", "q", "x"]
    cut = split(small(user, item), "temporal", valid=0, test=0.5)
    assert cut.test is not None
    held = cut.test.heldout["watch"]
    encoder = cut.test.encoder
    found = [
        (encoder.raw("user_id", int(held.users[r])), encoder.raw("item_id", int(i)))
        for r, i in zip(held.rows, held.items, strict=True)
    ]
    assert found == [("a", "z")]
    assert (held.skipped, len(cut.test)) == (4, 5)


def test_heldout_asks_for_positives_only() -> None:
    data = small(["a", "b", "c", "a", "b", "c"], ["x", "y", "z", "y", "z", "x"])
    tasks = (Task("late", "ranking", positive="row >= 4"), *TASKS)
    cut = split(replace(data, schema=replace(data.schema, tasks=tasks)), "temporal", valid=0, test=0.5)
    assert cut.test is not None
    late, watch = cut.test.heldout["late"], cut.test.heldout["watch"]
    assert (len(late.items), late.skipped, late.users.tolist()) == (2, 0, [2, 3])
    assert len(watch.items) == 3


@pytest.mark.parametrize("kind", ["temporal", "leave_last"])
def test_time_is_needed_where_time_decides(kind: str) -> None:
    data = replace(DATA, schema=replace(DATA.schema, time=None))
    with pytest.raises(ConfigError, match="synthetic has no time column"):
        split(data, kind)


def test_an_unknown_kind_is_told_the_near_name() -> None:
    with pytest.raises(ConfigError, match=r"split 'tempora' is unknown. Did you mean 'temporal'"):
        split(DATA, "tempora")


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (-0.1, 0.2), (float("nan"), 0.1)])
def test_shares_must_leave_rows_for_train(valid: float, test: float) -> None:
    with pytest.raises(ConfigError, match="leave rows for train") as caught:
        split(DATA, valid=valid, test=test)
    assert "\n" not in str(caught.value)


def test_no_training_row_is_an_error() -> None:
    with pytest.raises(DataError, match="no training row"):
        split(small(["a"]), "random", valid=0, test=0.9)


def test_a_negative_seed_is_an_error_of_ours() -> None:
    with pytest.raises(ConfigError, match="seed"):
        split(DATA, seed=-1)
