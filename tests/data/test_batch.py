import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from polytask.data import batch as batch_module
from polytask.data.batch import Batch, Feed, Part
from polytask.data.split import split
from polytask.data.synthetic import synthetic
from polytask.data.table import Dataset, read_dataset
from polytask.schema import Field, Schema, Task

DATA = synthetic(users=30, items=50, rows=700, seed=3)
TRAIN = split(DATA, valid=0, test=0.1).train  # 630 rows
OTHER = split(DATA, valid=0, test=0.1, seed=1).train


def with_tasks(*tasks: Task) -> Part:
    return split(replace(DATA, schema=replace(DATA.schema, tasks=tasks)), valid=0, test=0.1).train


def feed(parts: Sequence[Part] = (TRAIN,), seeds: Sequence[int] = (0,), size: int = 64, kind: str = "uniform") -> Feed:
    return Feed(parts, seeds, size, kind)


def joined(batches: Sequence[Batch]) -> Batch:
    """All rows of an epoch [R, N, ...]."""
    return Batch(*(torch.cat(tensors, dim=1) for tensors in zip(*batches, strict=True)))


def same(first: Batch, second: Batch) -> bool:
    return all(
        a.shape == b.shape and torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))
        for a, b in zip(first, second, strict=True)
    )


def test_an_epoch_is_every_row_once_in_a_new_order() -> None:
    made = feed()
    first, second = (joined(list(made.epoch(e))) for e in (1, 2))
    expected = torch.stack([TRAIN.user, TRAIN.item, TRAIN.labels[:, 1].long()], dim=1)
    for epoch in (first, second):
        found = torch.cat([epoch.ids[0], epoch.labels[0, :, 1:].long()], dim=1)
        assert sorted(found.tolist()) == sorted(expected.tolist())
    assert not torch.equal(first.ids, second.ids)


def test_a_row_keeps_its_own_fields_and_labels() -> None:
    users = pl.DataFrame({"user_id": ["1", "2", "3"], "age": [20.0, 30.0, 70.0]})
    table = pl.DataFrame(
        {"user_id": ["1", "2", "3", "1"], "item_id": ["a", "b", "a", "c"], "row": [0, 1, 2, None], "hour": [0, 1, 2, 3]}
    )
    fields = (Field("age", "number", "user"), Field("hour", "number"))
    schema = Schema((Task("row", "regression", label="row"),), fields, user="user_id", item="item_id")
    data = read_dataset(table, schema, users=users)
    part = split(data, valid=0, test=0).train
    everything = joined(list(Feed([part], [0], 3, "uniform").epoch(1)))
    ages, hours = (20, 30, 70), part.encoder.scales["hour"]
    for ids, numbers, label in zip(everything.ids[0], everything.numbers[0], everything.labels[0], strict=True):
        hour = round(float(numbers[3]) * hours[1] + hours[0])
        row = table.row(hour, named=True)
        assert [part.encoder.raw(n, int(i)) for n, i in (("user_id", ids[0]), ("item_id", ids[2]))] == [
            row["user_id"],
            row["item_id"],
        ]
        assert numbers[1] * part.encoder.scales["age"][1] + 40 == pytest.approx(ages[int(row["user_id"]) - 1], abs=1e-4)
        assert (label.item() == row["row"]) if row["row"] is not None else bool(label.isnan())


def test_the_same_seed_and_epoch_give_the_same_batches_and_another_seed_others() -> None:
    first, again, other = (joined(list(feed(seeds=[s]).epoch(4))) for s in (7, 7, 8))
    assert same(first, again)
    assert not torch.equal(first.ids, other.ids)
    assert not torch.equal(first.negative_ids, other.negative_ids)


@pytest.mark.parametrize("chunk", [1, 3, 32])
@pytest.mark.parametrize("start", [0, 1, 4, 9, 10])
def test_an_epoch_can_be_entered_at_any_step(start: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(feed().epoch(2))
    monkeypatch.setattr(batch_module, "_CHUNK", chunk)
    entered = list(feed().epoch(2, start))
    assert len(entered) == 10 - start
    assert all(same(a, b) for a, b in zip(entered, whole[start:], strict=True))


def test_a_replica_gets_what_it_would_get_alone() -> None:
    parts, seeds = [TRAIN, OTHER, TRAIN, TRAIN], [5, 5, 6, 5]
    stacked = joined(list(feed(parts, seeds).epoch(3)))
    for number, (part, seed) in enumerate(zip(parts, seeds, strict=True)):
        alone = joined(list(feed([part], [seed]).epoch(3)))
        assert same(Batch(*(t[number : number + 1] for t in stacked)), alone)


@pytest.mark.parametrize(("size", "sizes"), [(64, [64] * 9 + [54]), (630, [630]), (1000, [630]), (315, [315, 315])])
@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_the_last_batch_holds_the_rest(
    size: int, sizes: list[int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "_CHUNK", chunk)
    made = feed(size=size)
    assert [b.ids.shape[1] for b in made.epoch(1)] == sizes and len(made) == len(sizes)


def test_shapes() -> None:
    part = with_tasks(Task("watch", "ranking", negatives=3), Task("rating", "regression", label="rating"))
    first = next(feed([part, part], [0, 1]).epoch(1))
    shapes = [tuple(t.shape) for t in first]
    assert shapes[:5] == [(2, 64, 2), (2, 64, 2), (2, 64, 2), (2, 64, 3, 1), (2, 64, 3, 1)]
    assert shapes[5:] == [(2, 64, 0), (2, 64, 0), (2, 64, 0), (2, 0, 0), (2, 0, 0), (2, 64, 4)]
    assert [t.dtype for t in first[:5]] == [torch.int64, torch.float32, torch.float32, torch.int64, torch.float32]


def test_without_a_ranking_task_there_are_no_negatives() -> None:
    part = with_tasks(Task("rating", "regression", label="rating"))
    assert {tuple(b.negative_ids.shape[2:]) for b in feed([part]).epoch(1)} == {(0, 1)}


def test_negatives_are_items_the_user_has_not_and_are_drawn_anew_every_epoch() -> None:
    made, owned = feed(), set(zip(TRAIN.user.tolist(), TRAIN.item.tolist(), strict=True))
    first, second = (joined(list(made.epoch(e))) for e in (1, 2))
    drawn = list(zip(first.ids[0, :, 0].tolist(), first.negative_ids[0, :, 0, 0].tolist(), strict=True))
    assert not owned & set(drawn) and min(i for _, i in drawn) >= 1
    by_row = [
        dict(zip(map(tuple, e.ids[0].tolist()), e.negative_ids.flatten().tolist(), strict=True))
        for e in (first, second)
    ]
    changed = np.mean([by_row[0][key] != by_row[1][key] for key in by_row[0]])
    assert changed > 0.8


def test_a_negative_carries_the_fields_of_its_item() -> None:
    items = pl.DataFrame({"item_id": [str(i) for i in range(1, 51)], "genre": [f"g{i % 7}" for i in range(50)]})
    schema = replace(DATA.schema, fields=(Field("genre", side="item"),))
    source = DATA.interactions.select("user_id", "item_id", "rating", "timestamp")
    part = split(read_dataset(source, schema, items=items), valid=0, test=0.1).train
    everything = joined(list(feed([part]).epoch(1)))
    assert everything.negative_ids.shape == (1, 630, 1, 2)
    genres = dict(zip(items["item_id"], items["genre"], strict=True))
    for item, genre in everything.negative_ids[0, :, 0].tolist():
        assert part.encoder.raw("genre", genre) == genres[part.encoder.raw("item_id", item) or ""]


def test_an_interrupted_epoch_does_not_disturb_the_next() -> None:
    made, fresh = feed(), feed()
    list(itertools.islice(made.epoch(1), 3))
    assert same(joined(list(made.epoch(2))), joined(list(fresh.epoch(2))))


def test_rows_without_users_and_items_are_batched_too() -> None:
    table = pl.DataFrame({"device": list("xyzx"), "clicked": [1, 0, 1, 0]})
    schema = Schema((Task("click", "binary", label="clicked"),), (Field("device"),))
    part = split(read_dataset(table, schema), valid=0, test=0).train
    (first,) = feed([part]).epoch(1)
    assert first.ids.shape == (1, 4, 1) and first.negative_ids.shape[:3] == (1, 4, 0)


def test_unknown_context_looks_like_a_category_nobody_has_seen() -> None:
    table = pl.DataFrame(
        {"user_id": ["1", "2"], "item_id": ["a", "b"], "device": ["x", "y"], "hour": [1, 3], "r": [1, 2]}
    )
    fields = (Field("device"), Field("hour", "number"))
    schema = Schema((Task("r", "regression", label="r"),), fields, user="user_id", item="item_id")
    part = split(read_dataset(table, schema), valid=0, test=0).train
    ids, numbers = part.fields(part.user, part.item, None)
    assert ids[:, 2:].tolist() == [[0, 0], [0, 0]]
    assert numbers.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]  # a category counts once, a number is at its mean


def small(genres: list[str]) -> Dataset:
    table = pl.DataFrame({"user_id": ["1", "2", "1"], "item_id": ["a", "b", "c"], "rating": [1, 2, 3]})
    schema = Schema(
        (Task("r", "regression", label="rating"),), (Field("genre", side="item"),), user="user_id", item="item_id"
    )
    return read_dataset(table, schema, items=pl.DataFrame({"item_id": ["a", "b", "c"], "genre": genres}))


def test_the_fingerprint_is_equal_for_equal_data_only() -> None:
    plain, again = (split(small(["x", "y", "x"]), valid=0, test=0).train.fingerprint for _ in range(2))
    assert plain == again
    changed = small(["x", "y", "x"])
    ratings = changed.interactions.with_columns(pl.col("rating").replace({3: 4}))
    assert split(replace(changed, interactions=ratings), valid=0, test=0).train.fingerprint != plain


def test_the_fingerprint_covers_the_fields_of_users_and_items() -> None:
    first, second = (split(small(g), valid=0, test=0).train.fingerprint for g in (["x", "y", "x"], ["x", "y", "y"]))
    assert first != second


def test_means_are_over_the_rows_that_have_the_label() -> None:
    table = pl.DataFrame(
        {"user_id": ["1"] * 4, "item_id": list("abcd"), "r": [1.0, None, 4.0, None], "click": [1, 0, 0, 0]}
    )
    tasks = (Task("r", "regression", label="r"), Task("click", "binary", label="click"), Task("w", "ranking"))
    part = split(read_dataset(table, Schema(tasks, user="user_id", item="item_id")), valid=0, test=0).train
    assert [part.observed(n).mean for n in range(3)] == pytest.approx([2.5, 0.25, 1.0])
    nothing = replace(part, labels=part.labels * float("nan"))
    assert [nothing.observed(n).mean for n in range(3)] == [0, 0, 0]
