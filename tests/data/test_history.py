import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polytask.data.batch import Batch, Feed, Part
from polytask.data.history import Histories, Log
from polytask.data.split import Split, split
from polytask.data.table import Dataset, read_dataset
from polytask.errors import ConfigError
from polytask.schema import Field, Input, Pool, Schema, Task

RATING = Task("stars", "regression", label="rating")
ROW = tuple[int, int, float]  # user, item, time


def tensors(rows: Sequence[ROW], timed: bool) -> Log:
    """Rows as they come, neither sorted nor filtered."""
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    user, item = (torch.tensor(c, dtype=torch.int64) for c in columns[:2])
    return Log(user, item, torch.tensor(columns[2], dtype=torch.float64) if timed else None)


def histories(
    known: Sequence[ROW], rows: Sequence[ROW], lengths: Sequence[int], timed: bool, pool: Pool = "mean"
) -> Histories:
    inputs = [Input(f"h{n}", "history", "user", 0, length, "item", pool) for n, length in enumerate(lengths)]
    return Histories.of(
        inputs, Log.of(*vars(tensors(known, timed)).values()), tensors(rows, timed), torch.arange(9) * 10
    )


def brute(known: Sequence[ROW], row: ROW, length: int, timed: bool) -> list[int]:
    """Embedding rows of a row's history, oldest first: one look at everything that is known, at its time or not."""
    user, own, moment = row
    past = [r for r in known if r[0] == user > 0 and r[1] > 0 and (not timed or r[2] < moment)]
    past = sorted(past, key=lambda r: r[2])[-length:] if timed else past[-length:]
    return [10 * item for _, item, _ in past if timed or item != own]


def slots(found: Any, first: int, length: int) -> list[list[int]]:
    """The items in ``length`` slots from ``first`` on, the empty ones left out."""
    ids, numbers = (t[:, first : first + length] for t in (found.ids, found.numbers))
    assert not ids[numbers == 0].any()  # an empty slot reads row 0, times 0
    return [row[there > 0].tolist() for row, there in zip(ids, numbers, strict=True)]


logs = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 8), st.integers(0, 6).map(float)), max_size=40
)  # few users, items and moments: ties, repeats and unknown ids (0) are the rule


@given(logs, logs, st.booleans(), st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_a_history_is_what_a_look_at_every_known_row_finds(
    known: list[ROW], rows: list[ROW], timed: bool, lengths: list[int]
) -> None:
    made = histories(known, rows, lengths, timed)
    found = made.of_rows(torch.arange(len(rows)))
    assert found.ids.shape == found.numbers.shape == (len(rows), sum(lengths))
    for number, length in enumerate(lengths):
        expected = [brute(known, row, length, timed) for row in rows]
        assert slots(found, sum(lengths[:number]), length) == expected
    users = torch.arange(5)
    everything = [brute(known, (u, -1, np.inf), lengths[0], timed) for u in users.tolist()]
    assert slots(made.of_users(users), 0, lengths[0]) == everything


@given(logs, logs, st.booleans())
def test_the_shares_of_a_mean_add_up_to_one_and_those_of_attention_are_one_each(
    known: list[ROW], rows: list[ROW], timed: bool
) -> None:
    every = torch.arange(len(rows))
    mean, attention = (histories(known, rows, [4], timed, pool).of_rows(every) for pool in ("mean", "attention"))  # type: ignore[arg-type]
    assert torch.equal(mean.ids, attention.ids) and set(attention.numbers.unique().tolist()) <= {0.0, 1.0}
    total, there = mean.numbers.sum(dim=1), attention.numbers.any(dim=1)
    torch.testing.assert_close(total, there.to(total.dtype))
    for row in mean.numbers:
        assert len(row[row > 0].unique()) <= 1


def table(rows: int = 300, seed: int = 0) -> pl.DataFrame:
    """A log with ties in time and repeated pairs, in no order; the label is no part of anything but itself."""
    draw = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": [f"u{k}" for k in draw.integers(0, 12, rows)],
            "item": [f"i{k}" for k in draw.integers(0, 20, rows)],
            "time": draw.integers(0, 40, rows),
            "rating": draw.integers(1, 6, rows),
        }
    )


def dataset(frame: pl.DataFrame, *, timed: bool = True, length: int = 5, **options: Any) -> Dataset:
    fields = (Field("past", "history", length=length, **options),)
    schema = Schema((RATING,), fields, user="user", item="item", time="time" if timed else None)
    ids = [pl.DataFrame({name: [f"{name[0]}{k}" for k in range(n)]}) for name, n in (("user", 12), ("item", 20))]
    return read_dataset(frame, schema, users=ids[0], items=ids[1])


def of(part: Part | None) -> tuple[torch.Tensor, torch.Tensor]:
    assert part is not None and part.histories is not None
    found = part.histories.of_rows(torch.arange(len(part)))
    return found.ids, found.numbers


def raw(part: Part | None, frame: pl.DataFrame, rows: np.ndarray, past: np.ndarray, length: int) -> list[list[int]]:
    """What the histories of ``part`` must be, from the raw table."""
    assert part is not None
    code = {f"{side}{k}": k + 1 for side in "ui" for k in range(20)}
    coded = [(code[u], code[i], float(t)) for u, i, t in frame.select("user", "item", "time").iter_rows()]
    return [[i // 10 for i in brute([coded[k] for k in past], coded[row], length, True)] for row in rows]


def places(frame: pl.DataFrame, kind: str) -> list[np.ndarray]:
    """The rows of train, valid and test."""
    marked = frame.with_columns(rating=pl.Series(range(len(frame))))  # a label that numbers the rows
    cut = split(dataset(marked), kind, valid=0.2, test=0.2)
    return [p.labels[:, 0].long().numpy() for p in (cut.train, cut.valid, cut.test) if p is not None]


@pytest.mark.parametrize("kind", ["random", "temporal", "leave_last", "per_user"])
def test_train_and_valid_read_train_and_test_reads_both(kind: str) -> None:
    frame = table()
    cut, rows = split(dataset(frame), kind, valid=0.2, test=0.2), places(frame, kind)
    pasts = (rows[0], rows[0], np.concatenate(rows[:2]))
    assert len(rows) == 3
    for part, own, past in zip((cut.train, cut.valid, cut.test), rows, pasts, strict=True):
        ids, numbers = of(part)
        found = [sorted(row[there > 0].tolist()) for row, there in zip(ids, numbers, strict=True)]
        ties = [sorted(items) for items in raw(part, frame, own, past, length=99)]
        assert all(len(f) == min(len(t), 5) for f, t in zip(found, ties, strict=True))
        assert all(set(f) <= set(t) for f, t in zip(found, ties, strict=True))
        assert any(len(f) == 5 for f in found) and any(len(t) > 5 for t in ties)


def same(first: Split, second: Split, part: str, keep: np.ndarray | None = None) -> bool:
    (a, b), (c, d) = (of(getattr(s, part)) for s in (first, second))
    keep = np.arange(len(a)) if keep is None else keep
    return torch.equal(a[keep], c[keep]) and torch.equal(b[keep], d[keep])


def test_no_label_changes_a_history() -> None:
    frame = table()
    other = frame.with_columns(rating=6 - pl.col("rating"))
    first, second = (split(dataset(f), "random", valid=0.2, test=0.2) for f in (frame, other))
    assert not torch.equal(first.train.labels, second.train.labels)
    assert all(same(first, second, part) for part in ("train", "valid", "test"))


@pytest.mark.parametrize("moment", [10, 25])
def test_what_happens_later_or_at_the_same_moment_changes_no_history(moment: int) -> None:
    frame = table()
    later = pl.col("time") >= moment
    scrambled = frame["item"].sample(fraction=1.0, shuffle=True, seed=1)
    other = frame.with_columns(item=pl.when(later).then(scrambled).otherwise(pl.col("item")))
    early = (frame["time"] <= moment).to_numpy()  # at that moment itself nothing of it is known
    first, second = (split(dataset(f), valid=0.2, test=0.2) for f in (frame, other))
    for part, rows in zip(("train", "valid", "test"), places(frame, "random"), strict=True):
        assert 0 < early[rows].sum() < len(rows)
        assert same(first, second, part, np.flatnonzero(early[rows]))
        assert not same(first, second, part)


def test_without_times_a_history_is_every_other_item_of_the_user() -> None:
    frame = table(120)
    cut = split(dataset(frame, timed=False, length=40), valid=0.2, test=0.2)
    for part, past in ((cut.train, [cut.train]), (cut.valid, [cut.train]), (cut.test, [cut.train, cut.valid])):
        assert part is not None
        known = [(u, i) for p in past if p for u, i in zip(p.user.tolist(), p.item.tolist(), strict=True)]
        ids, numbers = of(part)
        for row, (user, item) in enumerate(zip(part.user.tolist(), part.item.tolist(), strict=True)):
            found = sorted(ids[row][numbers[row] > 0].tolist())
            assert item not in found
            assert found == sorted(i for u, i in known if u == user and i != item)


def test_ranking_reads_all_that_is_known_of_a_user() -> None:
    cut = split(dataset(table(), length=99), "temporal", valid=0.2, test=0.2)
    assert cut.test is not None and cut.valid is not None
    users = torch.arange(1, 13)
    side = cut.test.users(users)
    for user, ids, numbers in zip(users.tolist(), side.ids, side.numbers, strict=True):
        past = [p.item[p.user == user].tolist() for p in (cut.train, cut.valid)]
        assert sorted(ids[1:][numbers[1:] > 0].tolist()) == sorted([*past[0], *past[1]])


def test_unknown_users_and_items_are_in_no_history_and_have_none() -> None:
    items = [f"i{k}" if k < 40 else f"new{k}" for k in range(60)]
    frame = pl.DataFrame({"user": ["u1"] * 59 + ["u2"], "item": items, "time": range(60), "rating": [1.0] * 60})
    schema = Schema((RATING,), (Field("past", "history", length=99),), user="user", item="item", time="time")
    cut = split(read_dataset(frame, schema), "temporal", valid=0.25, test=0.25)  # 30, 15 and 15 rows
    assert cut.valid is not None and cut.test is not None
    assert not cut.valid.item.any() and cut.test.user.tolist() == [1] * 14 + [0]
    _, numbers = of(cut.test)
    assert (numbers > 0).sum(dim=1).tolist() == [30] * 14 + [0]  # nothing that valid holds is an item of train
    nobody = cut.test.users(torch.zeros(1, dtype=torch.int64))
    assert not nobody.ids.any() and not nobody.numbers[:, 1:].any()


def test_a_history_stands_behind_the_fields_of_the_user_and_reads_the_rows_of_the_item() -> None:
    part = split(dataset(table(), pool="attention"), valid=0, test=0.1).train
    assert [(i.name, i.side, i.size, i.slots, i.reads, i.pool) for i in part.inputs] == [
        ("user", "user", 13, 1, "", "mean"),
        ("past", "user", 0, 5, "item", "attention"),
        ("item", "item", 21, 1, "", "mean"),
    ]
    batch = next(Feed([part], [0], 64, "uniform").epoch(1))
    assert batch.ids.shape == batch.numbers.shape == (1, 64, 7)
    order = {(int(u), int(i)) for u, i in zip(part.user, part.item, strict=True)}
    assert {(int(r[0]), int(r[6])) for r in batch.ids[0]} <= order


def test_a_batch_holds_the_history_of_each_of_its_rows() -> None:
    part = split(dataset(table()), valid=0, test=0.1).train
    numbered = replace(part, labels=torch.arange(float(len(part)))[:, None])
    ids, numbers = of(part)
    for batch in Feed([numbered, numbered], [0, 1], 50, "uniform").epoch(2):
        one = Batch(*(t[1] if t.numel() else t for t in batch))
        rows = one.labels[:, 0].long()
        assert torch.equal(one.ids[:, 1:6], ids[rows]) and torch.equal(one.numbers[:, 1:6], numbers[rows])


def test_the_fingerprint_covers_the_order_of_the_past() -> None:
    part = split(dataset(table()), valid=0.2, test=0.2).test
    assert part is not None and part.histories is not None
    log = part.histories.log
    turned = replace(log, item=log.item.flip(0))
    other = replace(part, histories=replace(part.histories, log=turned))
    assert replace(part).fingerprint == part.fingerprint != other.fingerprint


def test_a_history_needs_users_and_items() -> None:
    with pytest.raises(ConfigError, match="field 'past': a history needs the user and item columns"):
        Schema((RATING,), (Field("past", "history"),), item="item")


def test_many_rows_are_prepared_in_seconds_and_little_memory() -> None:
    draw, count = np.random.default_rng(0), 300_000
    columns = draw.integers(1, 20_000, count), draw.integers(1, 9, count), draw.integers(0, 10**6, count)
    rows = Log(*(torch.from_numpy(c) for c in columns[:2]), torch.from_numpy(columns[2].astype(float)))
    inputs = [Input("past", "history", "user", 0, 50, "item")]
    tracemalloc.start()
    began = time.process_time()
    made = Histories.of(inputs, Log.of(rows.user, rows.item, rows.time), rows, torch.arange(9))
    seconds = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 4 and peak < 60e6  # columns [N]; the 50 slots of every row would take 120 MB and more
    assert made.of_rows(torch.arange(1024)).ids.shape == (1024, 50)
