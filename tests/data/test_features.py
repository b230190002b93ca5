"""Fields of every kind, from raw values to slots and embeddings, and what a feed does to them in training."""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polytask import rng
from polytask.data.batch import BIAS_DROP, Batch, Feed, Part
from polytask.data.encode import Encoder, fit_encoder
from polytask.data.split import split
from polytask.data.table import Dataset, read_dataset
from polytask.errors import ConfigError
from polytask.evaluate import evaluate, ranks_of
from polytask.gradients import Programs
from polytask.nn.model import MultiTask
from polytask.optimizers import Optimizers
from polytask.replicas import Stack
from polytask.run import TrainConfig
from polytask.schema import Field, Schema, Task
from polytask.train import fit

PLAIN = partial(Programs, trace=False)
STARS = Task("stars", "regression", label="rating")
WATCH = Task("watch", "ranking", head="dot")


def frame(rows: int = 200, seed: int = 0) -> pl.DataFrame:
    """A log with a column for every kind of field."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("abcdefgh"))
    bags = ["|".join(draw.choice(letters, draw.integers(0, 5))) or None for _ in range(rows)]
    prices = np.where(draw.random(rows) < 0.1, np.nan, draw.lognormal(2, 1, rows))
    return pl.DataFrame(
        {
            "user": [f"u{k}" for k in draw.integers(0, 15, rows)],
            "item": [f"i{k}" for k in draw.integers(0, 25, rows)],
            "time": draw.integers(0, 100, rows),
            "rating": draw.integers(1, 6, rows).astype(float),
            "device": draw.choice(letters, rows, p=np.arange(1, 9) / 36),
            "tags": pl.Series(bags, dtype=pl.String),
            "price": pl.Series(prices).fill_nan(None),
        }
    )


EVERY = (
    Field("device", min_count=3),
    Field("tags", "categories", length=3),
    Field("price", "number", scale="quantile", buckets=4),
    Field("past", "history", length=4),
)


def dataset(table: pl.DataFrame, *fields: Field, tasks: Sequence[Task] = (STARS,), **sides: pl.DataFrame) -> Dataset:
    return read_dataset(table, Schema(tuple(tasks), fields, user="user", item="item", time="time"), **sides)


def fitted(table: pl.DataFrame, *fields: Field, rows: Sequence[int] | None = None) -> Encoder:
    return fit_encoder(dataset(table, *fields), np.arange(len(table)) if rows is None else np.array(rows))


def small(**columns: Any) -> pl.DataFrame:
    """As many rows as the columns given have, of one user, item and moment each."""
    count = len(next(iter(columns.values())))
    plain = {"user": ["u"] * count, "item": ["i"] * count, "time": [0] * count, "rating": [1.0] * count}
    return pl.DataFrame(plain | columns)


# Everything is fitted on train alone.


def artifacts(encoder: Encoder) -> list[Any]:
    sides = [s for s in (encoder.users, encoder.items) if s is not None]
    return [
        encoder.inputs,
        [(n, v.to_list()) for n, v in sorted(encoder.vocabularies.items())],
        sorted(encoder.scales.items()),
        [(n, e.tolist()) for n, e in sorted(encoder.edges.items())],
        [(s.ids.tolist(), s.numbers.tolist()) for s in sides],
    ]


@pytest.mark.parametrize("scale", ["standard", "log", "quantile"])
def test_garbage_outside_train_leaves_no_trace_in_what_is_fitted(scale: Any) -> None:
    fields = (*EVERY[:2], Field("price", "number", scale=scale, buckets=4), Field("user", buckets=5), EVERY[3])
    table, train = frame(), list(range(0, 200, 2))
    other = pl.int_range(200) % 2 == 1
    garbage = table.with_columns(
        *(pl.when(other).then(pl.lit(f"!{c}|?")).otherwise(pl.col(c)).alias(c) for c in ("user", "device", "tags")),
        pl.when(other).then(pl.lit(-1e9)).otherwise(pl.col("price")).alias("price"),
        pl.when(other).then(pl.col("time") + 999).otherwise(pl.col("time")).alias("time"),
    )
    assert artifacts(fitted(table, *fields, rows=train)) == artifacts(fitted(garbage, *fields, rows=train))


# Categories.


def test_values_seen_fewer_than_min_count_times_in_train_are_unknown() -> None:
    table = small(device=["a", "a", "a", "b", "b", "c", "c", "c", "d"])
    encoder = fitted(table, Field("device", min_count=2), rows=[0, 1, 2, 3, 5, 6])  # b once, d never
    assert encoder.vocabularies["device"].to_list() == ["a", "c"]
    assert encoder.side(table, "context").ids[:, 0].tolist() == [1, 1, 1, 0, 0, 2, 2, 2, 0]


def test_min_count_of_ids_counts_the_rows_of_train_and_not_those_of_the_table_that_lists_them() -> None:
    table = pl.DataFrame({"user": list("aabbcd"), "item": ["i"] * 6, "time": [0] * 6, "rating": [1.0] * 6})
    users = pl.DataFrame({"user": list("dcba")})
    encoder = fit_encoder(dataset(table, Field("user", min_count=2), users=users), np.arange(5))
    assert encoder.vocabularies["user"].to_list() == ["b", "a"]
    assert encoder.index("user", table["user"]).tolist() == [2, 2, 1, 1, 0, 0]
    assert encoder.users is not None and len(encoder.users) == 3


def test_min_count_of_a_bag_counts_the_rows_a_value_stands_in() -> None:
    table = small(tags=["x|x|y", "y|z", "z", None])
    encoder = fitted(table, Field("tags", "categories", length=3, min_count=2))
    assert encoder.vocabularies["tags"].to_list() == ["y", "z"]


GOLDEN = {
    "u1": 15378189911849802130,
    "ä": 4152366542966443504,
    "a b": 2952434739088078779,
    "1": 8518482412311870710,
}  # BLAKE2b of 8 bytes, little endian
HASH = """
import polars as pl
from polytask.data.encode import _buckets
print(_buckets(pl.Series(["u1", "ä", "a b", "1"]), 1000003).tolist())
"""


@pytest.mark.parametrize("buckets", [2, 7, 100, 1000003])
def test_buckets_are_those_of_every_machine(buckets: int) -> None:
    table = small(device=list(GOLDEN))
    found = fitted(table, Field("device", buckets=buckets), rows=[0]).side(table, "context").ids[:, 0]
    assert found.tolist() == [v % buckets + 1 for v in GOLDEN.values()]  # also of values that train does not hold


@pytest.mark.parametrize("seed", ["0", "1"])
def test_buckets_are_those_of_every_process(seed: str) -> None:
    environment = os.environ | {"PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str([v % 1000003 + 1 for v in GOLDEN.values()])


def test_buckets_hold_values_about_evenly_and_the_missing_value_is_unknown() -> None:
    table = small(device=[*(f"v{k}" for k in range(5000)), None])
    encoder = fitted(table, Field("device", buckets=10), rows=[0])
    ids = encoder.side(table, "context").ids[:, 0]
    assert encoder.inputs[-1].size == 11 and ids[-1] == 0
    counts = torch.bincount(ids[:-1], minlength=11)
    assert counts[0] == 0 and counts[1:].min() > 400 and counts[1:].max() < 600


# Bags.


bags = st.lists(st.one_of(st.none(), st.lists(st.sampled_from(["a", "b", "c", "d", "e", "", "?"]), max_size=7)))


@given(bags, st.integers(1, 4))
def test_a_bag_is_the_mean_of_the_embeddings_of_its_first_values(rows: list[list[str] | None], length: int) -> None:
    texts = pl.Series(["a|b|c|d|e", *("|".join(r) if r else None for r in rows)], dtype=pl.String)
    table = small(tags=texts)
    encoder = fitted(table, Field("tags", "categories", length=length), rows=[0])
    found = encoder.side(table, "context")
    assert found.ids.shape == found.numbers.shape == (len(table), length)
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    pooled = (weight[found.ids] * found.numbers[..., None]).sum(dim=1)
    for text, mean in zip(texts.to_list(), pooled, strict=True):
        values = list(dict.fromkeys((text or "").split("|")))  # duplicates count once
        known = ["abcde".index(v) + 1 for v in values if v and v in "abcde"][:length]
        expected = weight[known].mean(dim=0) if known else torch.zeros(3)
        torch.testing.assert_close(mean, expected)


def test_an_empty_bag_has_neither_a_value_nor_a_gradient() -> None:
    part = split(dataset(small(tags=["a|b", None, "b", ""]), Field("tags", "categories", length=2)), valid=0, test=0)
    model = MultiTask.build(part.train, body="shared_bottom", dim=3, tower=())
    table = model.get_parameter("tables.0.weight")
    table.data.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(0)))
    start = int(model.get_buffer("tables.0.offsets")[2])
    empty = part.train.context.numbers.sum(dim=1) == 0
    assert empty.sum() == 2
    rows = torch.arange(4)[empty]
    batch = Batch.bare(*part.train.fields(part.train.user[rows], part.train.item[rows], rows))
    before = model(batch)[0]
    before.sum().backward()
    assert table.grad is not None and not table.grad[start:].any() and table.grad[:start].any()
    table.data[start:] += 1.0  # the rows of the bag's field
    assert torch.equal(model(batch)[0], before)


def test_a_bag_may_have_another_separator() -> None:
    table = small(tags=["a, b", "b"])
    encoder = fitted(table, Field("tags", "categories", separator=", ", length=2))
    assert encoder.vocabularies["tags"].to_list() == ["a", "b"]
    assert encoder.side(table, "context").ids.tolist() == [[1, 2], [2, 0]]


def test_the_fields_of_negatives_hold_the_bags_of_their_items() -> None:
    items = pl.DataFrame({"item": [f"i{k}" for k in range(25)], "genre": ["x|y", "y", "x|y|z", None, "z"] * 5})
    data = dataset(frame(), Field("genre", "categories", length=2), tasks=(WATCH,), items=items)
    part = split(data, valid=0, test=0.1).train
    catalogue = part.encoder.items
    assert catalogue is not None
    batch = next(Feed([part], [0], 64, "uniform").epoch(1))
    assert batch.negative_ids.shape == (1, 64, 1, 3)
    for ids, numbers in zip(batch.negative_ids[0, :, 0], batch.negative_numbers[0, :, 0], strict=True):
        item = int(part.encoder.raw("item", int(ids[0]))[1:])  # type: ignore[index]
        values = (items["genre"][item] or "").split("|")[:2]
        assert [part.encoder.raw("genre", int(i)) for i in ids[1:] if i] == [v for v in values if v]
        assert numbers[1:].sum() == bool(values[0])


# Numbers.


def test_a_log_scale_standardizes_the_logarithm_and_keeps_the_sign() -> None:
    values = [0.0, 9.0, 99.0, -9.0, None]
    table = small(price=pl.Series(values, dtype=pl.Float64))
    encoder = fitted(table, Field("price", "number", scale="log"), rows=[0, 1, 2])
    logs = np.array([0.0, np.log(10), np.log(100)])
    mean, scale = encoder.scales["price"]
    assert (mean, scale) == (pytest.approx(logs.mean()), pytest.approx(logs.std(ddof=1)))
    found = encoder.side(table, "context").numbers[:, 0].tolist()
    assert found == pytest.approx([*(logs - mean) / scale, (-np.log(10) - mean) / scale, 0.0], abs=1e-6)


def test_quantile_buckets_hold_about_equally_many_rows() -> None:
    prices = np.random.default_rng(0).lognormal(0, 3, 1000)
    table = small(price=[*prices, None])
    encoder = fitted(table, Field("price", "number", scale="quantile", buckets=8), rows=list(range(1000)))
    ids = encoder.side(table, "context").ids[:, 0]
    assert torch.bincount(ids, minlength=9).tolist() == [1] + [125] * 8
    assert encoder.inputs[-1].kind == "category" and encoder.inputs[-1].size == 9
    assert (encoder.side(table, "context").numbers == 1).all()
    order = np.argsort(prices)
    assert (np.diff(ids[:-1].numpy()[order]) >= 0).all()  # buckets are in the order of the numbers


def test_a_number_at_an_edge_is_in_the_bucket_above() -> None:
    table = small(price=[0.0, 1.0, 2.0, 3.0, 4.0, 2.0 - 1e-9, 2.0 + 1e-9])
    encoder = fitted(table, Field("price", "number", scale="quantile", buckets=2), rows=[0, 1, 2, 3, 4])
    assert encoder.edges["price"].tolist() == [2.0]
    assert encoder.side(table, "context").ids[:, 0].tolist() == [1, 1, 2, 2, 2, 1, 2]


@pytest.mark.parametrize("values", [[5.0] * 6, [1.0, 1.0, 1.0, 1.0, 1.0, 9.0], [None] * 6])
def test_quantiles_of_numbers_that_repeat_are_fewer_and_still_cover_every_number(values: list[float | None]) -> None:
    table = small(price=pl.Series(values, dtype=pl.Float64))
    encoder = fitted(table, Field("price", "number", scale="quantile", buckets=4))
    extreme = small(price=[-1e300, 1e300, 5.0])
    size = encoder.inputs[-1].size
    for some in (table, extreme):
        ids = encoder.side(some, "context").ids[:, 0]
        assert ((ids > 0) == torch.from_numpy(some["price"].is_not_null().to_numpy().copy())).all() and ids.max() < size


# Ids in buckets.


def hashed(tasks: Sequence[Task], **options: Any) -> tuple[Part, Part]:
    fields = (Field("user", buckets=6), Field("item", buckets=8), Field("past", "history", length=4, **options))
    cut = split(dataset(frame(400), *fields, tasks=tasks), "temporal", valid=0, test=0.2)
    assert cut.test is not None
    return cut.train, cut.test


def test_ids_in_buckets_keep_their_index_and_share_embedding_rows() -> None:
    train, _ = hashed((STARS,))
    assert train.encoder.items is not None and train.encoder.users is not None
    assert [(i.name, i.size) for i in train.inputs] == [("user", 7), ("past", 0), ("item", 9)]
    assert len(train.encoder.items) == 26 and train.item.max() == 25
    ids, _ = train.fields(train.user, train.item, torch.arange(len(train)))
    assert torch.equal(ids[:, 5], train.encoder.items.ids[train.item, 0]) and ids[:, 5].max() == 8
    assert train.histories is not None
    known = train.histories.log.item[train.histories.end - 1][train.histories.end > train.histories.start]
    last = ids[train.histories.end > train.histories.start, 4]
    assert torch.equal(last, train.encoder.items.ids[known, 0])


LOSSES = ["bpr", "softmax", "in_batch_softmax", "full_softmax"]


@pytest.mark.parametrize("loss", LOSSES)
def test_ids_in_buckets_train_and_rank(loss: str) -> None:
    train, test = hashed((Task("watch", "ranking", head="dot", loss=loss), STARS))
    model = MultiTask.build(train, dim=4, tower=(5,))
    run = fit(model, train, test=test, config=TrainConfig(epochs=2, batch=64, lr=0.02, unknown=0.2))
    scores = evaluate(model, test)
    assert scores.to_dict() == run.history[-1]["test"]
    ranks = ranks_of(model, test, "watch")
    assert ((ranks >= 1) & (ranks <= 25)).all()


@pytest.mark.parametrize("loss", LOSSES[1:])
@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_losses_over_items_know_each_item_although_its_id_is_in_a_bucket_or_hidden(loss: str, unknown: float) -> None:
    train, _ = hashed((Task("watch", "ranking", head="dot", loss=loss, negatives=3),))
    model = MultiTask.build(train, dim=4)
    feed = Feed([train], [0], 64, "uniform", unknown=unknown, catalogue=model.every_item)
    order = train.item[rng.generator(0, "order", 1).permutation(len(train))]
    batch = Batch(*(t[0] for t in next(iter(feed.epoch(1)))))
    (context,) = model.contexts(model(batch), batch)
    assert context.items is not None
    assert torch.equal(context.items[:, 0], order[:64])
    assert train.encoder.items is not None
    assert torch.equal(train.encoder.items.ids[context.items[:, 1:], 0], batch.negative_ids[..., 0])


# What a feed hides.


def feed_of(part: Part, seeds: Sequence[int] = (0,), **options: Any) -> Feed:
    return Feed([part] * len(seeds), seeds, 50, "uniform", **options)


def epoch(feed: Feed, number: int = 1) -> Batch:
    """All rows of an epoch [R, N, ...]."""
    return Batch(*(torch.cat(t, dim=1) for t in zip(*feed.epoch(number), strict=True)))


def wide(tasks: Sequence[Task] = (STARS,), rows: int = 2000, **options: Any) -> Part:
    return split(dataset(frame(rows), *EVERY, tasks=tasks, **options), valid=0, test=0.1).train


def test_the_share_that_is_asked_for_becomes_unknown_in_every_slot_that_holds_a_value() -> None:
    part = wide()
    plain, hidden = epoch(feed_of(part)), epoch(feed_of(part, unknown=0.3))
    assert torch.equal(plain.numbers, hidden.numbers)
    changed = plain.ids != hidden.ids
    assert not hidden.ids[changed].any()
    for slot in range(plain.ids.shape[2]):
        there = plain.ids[..., slot] > 0
        share = changed[..., slot][there].double().mean().item()
        assert share == pytest.approx(0.3, abs=4 * (0.21 / int(there.sum())) ** 0.5)
    assert (changed.any(dim=1).sum() > 5) and not torch.equal(changed[..., 0], changed[..., -1])
    assert torch.equal(plain.negative_ids, hidden.negative_ids)


def test_numbers_are_never_hidden() -> None:
    data = dataset(frame(), Field("price", "number"))
    part = split(data, valid=0, test=0.1).train
    plain, hidden = epoch(feed_of(part)), epoch(feed_of(part, unknown=0.9))
    assert torch.equal(plain.numbers, hidden.numbers) and not torch.equal(plain.ids, hidden.ids)


def same(first: Batch, second: Batch) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a.shape == b.shape and torch.equal(a.nan_to_num(-9), b.nan_to_num(-9)) for a, b in pairs)


def test_what_is_hidden_and_the_noise_are_those_of_the_seed_and_the_step_alone() -> None:
    part, options = wide(rows=400), {"unknown": 0.2, "noise": 3}
    whole = list(feed_of(part, **options).epoch(2))
    for start in (0, 1, 5):
        entered = list(feed_of(part, **options).epoch(2, start))
        assert all(same(a, b) for a, b in zip(entered, whole[start:], strict=True))
    stacked = epoch(feed_of(part, [4, 5, 4], **options))
    for number, seed in enumerate((4, 5, 4)):
        alone = epoch(feed_of(part, [seed], **options))
        assert same(Batch(*(t[number : number + 1] for t in stacked)), alone)
    assert not torch.equal(stacked.noise[0], stacked.noise[1])


def test_noise_is_uniform_and_new_for_every_row_number_step_and_epoch() -> None:
    part = wide(rows=400)
    noise = torch.cat([epoch(feed_of(part, noise=3), number).noise for number in (1, 2)], dim=1)[0]
    assert noise.shape == (720, 3) and noise.unique().numel() > 0.999 * noise.numel()
    assert noise.min() >= 0 and noise.max() < 1
    assert noise.mean().item() == pytest.approx(0.5, abs=0.03) and noise.std().item() == pytest.approx(
        12**-0.5, abs=0.02
    )
    assert abs(torch.corrcoef(noise.T).triu(diagonal=1)).max() < 0.15


def test_a_model_that_takes_more_noise_takes_the_same_first() -> None:
    part = wide(rows=400)
    few, more = (epoch(feed_of(part, noise=width)).noise for width in (2, 5))
    assert torch.equal(few, more[..., :2])  # so that a part of a model sees in it what it sees alone


def trained_rows(part: Part, unknown: float) -> Tensor:
    """Which rows 0 of the fields a training moves, fields in order."""
    model = MultiTask.build(part, body="shared_bottom", dim=3, tower=())
    stack = Stack([model], [0.1], optimizers=Optimizers("sgd"), programs=PLAIN)
    for batch in feed_of(part, unknown=unknown).epoch(1):
        stack.step(batch, torch.ones(1, 1))
    offsets = model.get_buffer("tables.0.offsets")
    slots = torch.tensor([i.slots for i in part.inputs]).cumsum(dim=0) - 1
    return model.get_parameter("tables.0.weight")[offsets[slots]].any(dim=1)


def test_the_unknown_row_is_trained_only_where_something_is_unknown() -> None:
    table = frame().with_columns(price=pl.col("price").fill_null(1.0))  # nothing but bags and histories lacks values
    fields = (Field("device"), Field("tags", "categories", length=3), EVERY[2], EVERY[3])
    part = split(dataset(table, *fields), valid=0, test=0.1).train
    assert (part.context.numbers == 0).any()  # padding reads row 0 and must not train it
    assert not trained_rows(part, unknown=0.0).any()
    assert trained_rows(part, unknown=0.2).all()


def test_fields_of_the_display_are_hidden_in_a_tenth_of_the_rows_at_least() -> None:
    task = Task("stars", "regression", label="rating", bias_fields=("device",))
    part = wide((task,), rows=4000)
    for unknown, expected in ((0.0, BIAS_DROP), (0.05, BIAS_DROP), (0.4, 0.4)):
        plain = wide((STARS,), rows=4000)
        assert [i.name for i in plain.inputs][3:] != [i.name for i in part.inputs][3:]  # they stand last
        ids = epoch(feed_of(part, unknown=unknown)).ids[0]
        known = (part.context.ids[:, -1] > 0).double().mean().item()
        share = 1 - (ids[:, -1] > 0).double().mean().item() / known
        assert share == pytest.approx(expected, abs=0.03)
        others = (ids[:, 0] == 0).double().mean().item()
        assert others == pytest.approx(unknown, abs=0.03)


def test_what_is_of_the_display_is_hidden_together_and_reads_as_nothing() -> None:
    task = Task("stars", "regression", label="rating", bias_fields=("tags", "device"))
    part = wide((task,))
    plain = split(dataset(frame(2000), *EVERY, tasks=(task,)), valid=0, test=0.1).train.context.numbers
    slots = [k for k, i in enumerate(i.name for i in part.inputs for _ in range(i.slots)) if i in task.bias_fields]
    assert len(slots) == 4 and plain.shape[1] == 5
    numbers = epoch(feed_of(part)).numbers[0][:, slots]
    hidden = numbers[:, 0] == 0  # the device has number 1
    assert hidden.double().mean().item() == pytest.approx(BIAS_DROP, abs=0.03)
    assert not numbers[hidden].any()
    known = (plain[:, 1:].sum(dim=1) > 1).double().mean().item()  # rows whose bag is not empty
    assert (numbers[~hidden].sum(dim=1) > 1).double().mean().item() == pytest.approx(known, abs=0.03)


def test_a_number_of_the_display_is_hidden_too() -> None:
    task = Task("stars", "regression", label="rating", bias_fields=("time",))
    data = read_dataset(frame(2000), Schema((task,), (Field("time", "number"),), user="user", item="item"))
    part = split(data, valid=0, test=0).train
    assert (part.context.numbers != 0).all()
    share = (epoch(feed_of(part)).numbers[0, :, -1] == 0).double().mean().item()
    assert share == pytest.approx(BIAS_DROP, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "categorys"}, "kind 'categorys' is unknown. Did you mean 'category'"),
        ({"scale": "quantiles"}, "Did you mean 'quantile'"),
        ({"scale": "quantile", "buckets": 1}, 'scale = "quantile" needs buckets = 2 or more'),
        ({"buckets": -1}, "buckets must be >= 0"),
        ({"length": 0}, "min_count and length >= 1"),
        ({"pool": "max"}, "pool 'max' is unknown"),
    ],
)
def test_a_field_that_cannot_be_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Field("price", **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
