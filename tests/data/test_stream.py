import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from polytask.data import stream as stream_module
from polytask.data.batch import Batch, Feed, Part
from polytask.data.encode import Encoder, fit_encoder
from polytask.data.split import Split
from polytask.data.stream import Streamed, stream
from polytask.data.table import Dataset, read_dataset
from polytask.errors import ConfigError, DataError
from polytask.evaluate import evaluate
from polytask.nn.model import MultiTask
from polytask.run import TrainConfig
from polytask.schema import Field, Schema, Task
from polytask.train import fit

ROWS = 3000
TASKS = (Task("click", "binary", label="click"), Task("stars", "regression", label="stars", range=(1, 5)))
FIELDS = (Field("hour"), Field("page"), Field("tags", "categories", length=2), Field("price", "number", scale="log"))
SCHEMA = Schema(TASKS, FIELDS, user="user", item="item", time="time")
PLAIN = Schema(TASKS[:1], (Field("hour"), Field("price", "number")))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "BLOCK", 128)
    monkeypatch.setattr(stream_module, "BLOCKS", 3)


def table(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    stars = draw.integers(1, 6, rows)
    return pl.DataFrame(
        {
            "user": draw.integers(5, 120, rows),
            "item": draw.integers(-3, 60, rows) * 10**15,  # too far apart to be counted in an array
            "hour": draw.integers(0, 24, rows).astype(np.int8),
            "page": [f"p{k}" for k in draw.integers(0, 9, rows)],
            "tags": [f"a{k % 5}|b{k % 3}" for k in draw.integers(0, 60, rows)],
            "price": draw.lognormal(0, 1, rows),
            "time": np.arange(rows) + 1_700_000_000,
            "click": draw.integers(0, 2, rows),
            "stars": [int(s) if k % 3 else None for k, s in enumerate(stars)],
            "row": np.arange(rows),
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    table().write_parquet(tmp_path / "log.parquet", row_group_size=500)
    return tmp_path / "log.parquet"


def streamed(split: Split) -> Streamed:
    assert isinstance(split.train, Streamed)
    return split.train


def windows(train: Streamed, epoch: int = 1, start: int = 0, seed: int = 0) -> list[Part]:
    return [w.part for w in train.windows(seed, epoch, start)]


def rows_of(train: Streamed) -> np.ndarray:
    """The numbers of the training rows, by the time that stands in each of the data."""
    frames = [train.files.read(a, min(a + 128, ROWS), ["row", "time"]) for a in range(0, ROWS, 128)]
    found = [f["row"].to_numpy()[train.cut(f.drop("row"), n * 128) == 0] for n, f in enumerate(frames)]
    return np.concatenate(found)


def same_encoder(found: Encoder, expected: Encoder) -> None:
    assert found.inputs == expected.inputs and list(found.vocabularies) == list(expected.vocabularies)
    for name, values in expected.vocabularies.items():
        assert found.vocabularies[name].to_list() == values.to_list()
    assert found.scales.keys() == expected.scales.keys()
    for name, scale in expected.scales.items():
        assert found.scales[name] == pytest.approx(scale, rel=1e-12)
    for side in ("users", "items"):
        own, other = getattr(found, side), getattr(expected, side)
        assert torch.equal(own.ids, other.ids) and torch.allclose(own.numbers, other.numbers)


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a.nan_to_num(-9), b.nan_to_num(-9)) for a, b in zip(first, second, strict=True))


def flat(batches: Iterator[Batch] | Sequence[Batch]) -> torch.Tensor:
    """Ids, numbers and labels [N, ...] of all rows, in an order that depends on the rows alone."""
    rows = torch.cat([torch.cat([b.ids[0].float(), b.numbers[0], b.labels[0].nan_to_num(-9)], dim=1) for b in batches])
    return torch.tensor(sorted(rows.tolist()))


@pytest.mark.parametrize("kind", ["random", "temporal"])
def test_the_encoder_is_the_one_that_is_fitted_in_memory_on_the_same_rows(path: Path, kind: str) -> None:
    train = streamed(stream(path, SCHEMA).split(kind, valid=0.1, test=0.1))
    same_encoder(train.encoder, fit_encoder(read_dataset(path, SCHEMA), rows_of(train)))


def test_tables_min_count_and_text_ids_are_fitted_as_in_memory(tmp_path: Path) -> None:
    log = table().with_columns(pl.col("user").cast(pl.String), item=pl.col("item") // 10**15)
    log.write_parquet(tmp_path / "log.parquet")
    items = pl.DataFrame({"item": range(-3, 80), "genre": [f"g{k % 7}" for k in range(83)], "cost": range(83)})
    fields = (Field("item", min_count=40), Field("user", min_count=25), Field("page", buckets=4), Field("genre"))
    schema = replace(SCHEMA, fields=(*fields, Field("cost", "number"), Field("hour", min_count=130)))
    train = streamed(stream(tmp_path / "log.parquet", schema, items=items).split())
    expected = fit_encoder(read_dataset(log, schema, items=items), rows_of(train))
    assert 0 < len(expected.vocabularies["hour"]) < 24 and 0 < len(expected.vocabularies["item"]) < 60
    same_encoder(train.encoder, expected)


def test_the_three_parts_hold_every_row_once_and_the_shares_are_met(path: Path) -> None:
    found = stream(path, SCHEMA).split(valid=0.2, test=0.1)
    assert found.valid is not None and found.test is not None
    sizes = [len(p) for p in (found.train, found.valid, found.test)]
    assert sum(sizes) == ROWS and sizes[1] == pytest.approx(600, abs=80) and sizes[2] == pytest.approx(300, abs=60)
    source = found.valid.source
    assert source is not None
    held = [source.interactions["time"][p.rows].to_list() for p in (found.valid, found.test)]
    trained = (rows_of(streamed(found)) + 1_700_000_000).tolist()
    assert sorted([*trained, *held[0], *held[1]]) == table()["time"].to_list()


def test_a_temporal_split_takes_the_last_rows(path: Path) -> None:
    found = stream(path, SCHEMA).split("temporal", valid=0.1, test=0.2)
    assert found.valid is not None and found.test is not None
    assert (len(found.train), len(found.valid), len(found.test)) == (2100, 300, 600)
    assert rows_of(streamed(found)).max() == 2099


def test_an_epoch_is_every_training_row_once_as_the_resident_feed_gives_it(path: Path) -> None:
    train = streamed(stream(path, SCHEMA).split(valid=0.1, test=0.1))
    frame = read_dataset(path, SCHEMA).interactions[rows_of(train)]
    resident = Part.of("train", train.encoder, frame)
    expected = flat(Feed([resident], [0], 64, "uniform").epoch(1))
    for epoch in (1, 2):
        batches = list(Feed([train], [0], 64, "uniform").epoch(epoch))
        assert {b.ids.shape[1] for b in batches[:-1]} == {64} and len(batches) == -(-len(train) // 64)
        assert torch.equal(flat(batches), expected)
    assert torch.equal(train.popularity, resident.popularity)
    assert torch.equal(train.pairs.user, resident.pairs.user) and torch.equal(train.pairs.item, resident.pairs.item)


def test_an_epoch_is_in_an_order_of_its_own_seed_and_number(path: Path) -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        train = streamed(stream(path, SCHEMA).split(valid=0.1, test=0.1))
        return next(Feed([train], [seed], 64, "uniform").epoch(epoch)).ids

    assert torch.equal(first(0, 1), first(0, 1))
    assert not torch.equal(first(0, 1), first(0, 2)) and not torch.equal(first(0, 1), first(1, 1))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The blocks of every window that is read."""
    found: list[list[int]] = []
    plain = Streamed._part

    def part(self: Streamed, blocks: np.ndarray) -> Part:
        found.append(blocks.tolist())
        return plain(self, blocks)

    monkeypatch.setattr(Streamed, "_part", part)
    return found


def test_a_window_mixes_blocks_from_all_over_the_file(path: Path, asked: list[list[int]]) -> None:
    train = streamed(stream(path, PLAIN).split(valid=0, test=0))
    sizes = [len(p) for p in windows(train)]
    assert len(sizes) == 8 and sum(sizes) == ROWS and max(sizes) == 3 * 128
    assert sorted(b for blocks in asked for b in blocks) == list(range(24))
    assert max(max(blocks) - min(blocks) for blocks in asked) > 8


def test_what_lies_before_the_start_is_not_read(path: Path, asked: list[list[int]]) -> None:
    train = streamed(stream(path, PLAIN).split(valid=0, test=0))
    assert len(list(Feed([train], [0], 100, "uniform").epoch(1, 29))) == 1
    assert len(asked) == 1


RANKED = replace(SCHEMA, tasks=(*TASKS, Task("watch", "ranking", negatives=2)))


@pytest.mark.parametrize("start", [0, 1, 5, 6, 17, 38, 39])
def test_an_epoch_can_be_entered_at_any_step(path: Path, start: int) -> None:
    train = streamed(stream(path, RANKED).split(valid=0.1, test=0.1))
    feed = Feed([train], [3], 64, "mixed", unknown=0.1, noise=2)
    whole, entered = list(feed.epoch(2)), list(feed.epoch(2, start))
    assert len(whole) == len(feed) == 39 and len(entered) == 39 - start
    assert all(same(a, b) for a, b in zip(entered, whole[start:], strict=True))


def test_a_replica_gets_what_it_would_get_alone(path: Path) -> None:
    train = streamed(stream(path, RANKED).split(valid=0.1, test=0.1))
    stacked = list(itertools.islice(Feed([train] * 3, [5, 6, 5], 64, "uniform").epoch(1), 4))
    for number, seed in enumerate((5, 6, 5)):
        alone = Feed([train], [seed], 64, "uniform").epoch(1)
        for own, batch in zip(alone, stacked, strict=False):
            assert same(Batch(*(t[number : number + 1] for t in batch)), own)


def test_negatives_are_items_the_user_has_not_in_any_block(path: Path) -> None:
    train = streamed(stream(path, RANKED).split(valid=0.1, test=0.1))
    had = set(zip(train.pairs.user.tolist(), train.pairs.item.tolist(), strict=True))
    assert len(had) > 1000
    for batch in Feed([train], [0], 64, "uniform").epoch(1):
        users = batch.ids[0, :, 0].tolist()
        drawn = {(u, i) for u, items in zip(users, batch.negative_ids[0, :, :, 0].tolist(), strict=True) for i in items}
        assert not drawn & had


def test_a_folder_is_read_as_its_files_one_after_the_other(path: Path, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for name, (first, last) in {"a": (0, 700), "b": (700, 701), "c": (701, 3000)}.items():
        table()[first:last].write_parquet(tmp_path / "log" / f"{name}.parquet")
    whole, parts = (streamed(stream(p, SCHEMA).split("temporal")) for p in (path, tmp_path / "log"))
    assert all(
        same(a, b) for a, b in zip(*(Feed([t], [0], 64, "uniform").epoch(1) for t in (whole, parts)), strict=True)
    )


def test_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    bad = table().with_columns(
        stars=pl.when(pl.col("row") == 1000).then(9).otherwise(pl.col("stars")),
        user=pl.when(pl.col("row") == 2999).then(None).otherwise(pl.col("user")),
    )
    bad.write_parquet(tmp_path / "log.parquet")
    found = stream(tmp_path / "log.parquet", SCHEMA).split(valid=0.0, test=0.0)
    assert len(found.train) == ROWS - 2 == len(flat(Feed([found.train], [0], 64, "uniform").epoch(1)))
    source = streamed(found).sample.source
    assert isinstance(source, Dataset) and source.rejects.count == 2
    assert [r.line for r in source.rejects.rows] == [1001, 3000]
    same_encoder(found.train.encoder, fit_encoder(read_dataset(bad, SCHEMA), np.arange(ROWS - 2)))


def test_more_than_one_bad_row_in_a_hundred_is_an_error(tmp_path: Path) -> None:
    table().with_columns(click=pl.col("row") % 80).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"row 3: click 2 is outside 0..1 .*over 1 %"):
        stream(tmp_path / "log.parquet", SCHEMA).split()


def test_what_is_fitted_on_labels_reads_a_sample(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = streamed(stream(path, SCHEMA).split(valid=0, test=0))
    assert len(whole.sample) == ROWS
    expected = float(table()["click"].mean())  # type: ignore[arg-type]
    assert whole.observed(0).mean == pytest.approx(expected)
    assert int(whole.observed(0).popularity.sum()) == ROWS
    monkeypatch.setattr(stream_module, "_SAMPLE", 100)
    few = streamed(stream(path, SCHEMA).split(valid=0, test=0))
    assert len(few.sample) == 100 and few.sample.source is not None
    assert few.sample.source.interactions["time"].to_list() == table()["time"].to_list()[::30]


def test_a_model_trains_on_a_stream_and_a_finished_run_is_found_again(path: Path, tmp_path: Path) -> None:
    def run(folder: Path, epochs: int) -> torch.Tensor:
        parts = stream(path, SCHEMA).split(valid=0.1, test=0.1)
        model = MultiTask.build(parts.train, body="shared_bottom", dim=4)
        config = TrainConfig(epochs=epochs, batch=64, patience=0)
        fit(model, parts.train, parts.valid, parts.test, config=config, folder=folder)
        assert parts.test is not None and evaluate(model, parts.test)["stars"]["mse"].used > 0
        return torch.cat([p.flatten() for p in model.parameters()])

    first = run(tmp_path / "a", 2)
    assert torch.equal(run(tmp_path / "b", 2), first) and torch.equal(run(tmp_path / "a", 2), first)


def test_a_part_that_is_not_in_memory_says_so(path: Path) -> None:
    parts = stream(path, SCHEMA).split()
    model = MultiTask.build(parts.train, body="shared_bottom", dim=4)
    with pytest.raises(ConfigError, match=r"log.parquet are streamed, .*use read_dataset and split, or .sample"):
        evaluate(model, parts.train)
    assert evaluate(model, parts.train.sample)["click"]["auc"].used == len(parts.train)


def test_the_fingerprint_tells_data_and_splits_apart(path: Path, tmp_path: Path) -> None:
    table(seed=1).write_parquet(tmp_path / "other.parquet", row_group_size=500)
    settings = ((path, 0), (tmp_path / "other.parquet", 0), (path, 1))
    again, other, dealt = (stream(p, SCHEMA).split(seed=s).train.fingerprint for p, s in settings)
    assert stream(path, SCHEMA).split().train.fingerprint == again and len({again, other, dealt}) == 3


@pytest.mark.parametrize(
    ("schema", "kind", "message"),
    [
        (replace(SCHEMA, fields=(Field("recent", "history"),)), "random", "a history needs all rows of a user"),
        (replace(PLAIN, fields=(Field("price", "number", scale="quantile", buckets=3),)), "random", "all values"),
        (SCHEMA, "per_user", "'per_user' needs all rows in memory; a stream is split by 'random' or 'temporal'"),
        (SCHEMA, "tempral", "Did you mean 'temporal'"),
        (PLAIN, "temporal", "no time column"),
    ],
    ids=["history", "quantile", "per_user", "unknown", "time"],
)
def test_what_cannot_be_streamed_is_one_line(path: Path, schema: Schema, kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        stream(path, schema).split(kind)
    assert "\n" not in str(caught.value)


def test_what_would_not_fit_in_memory_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_HELD", 500)
    with pytest.raises(ConfigError, match="valid and test would hold over 500 rows in memory; lower their shares"):
        stream(path, SCHEMA).split(valid=0.2, test=0.2)
    monkeypatch.setattr(stream_module, "_PAIRED", 1000)
    with pytest.raises(ConfigError, match="training rows are too many to know which items each user had"):
        Feed([stream(path, RANKED).split(valid=0, test=0).train], [0], 64, "uniform")
    for kind in ("uniform_all", "in_batch"):
        assert len(list(Feed([stream(path, RANKED).split(valid=0, test=0).train], [0], 64, kind).epoch(1))) == 47


@pytest.mark.parametrize("name", ["no.parquet", "log.csv", "empty.parquet", "text.parquet", "folder"])
def test_a_file_that_cannot_be_streamed_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    table().head(3).drop("tags").write_csv(tmp_path / "log.csv")
    table().head(0).write_parquet(tmp_path / "empty.parquet")
    (tmp_path / "text.parquet").write_bytes(b"no Parquet at all")
    with pytest.raises(DataError) as caught:
        stream(tmp_path / name, SCHEMA)
    assert "\n" not in str(caught.value)
