"""Training rows that stay on disk: an encoder fitted in one pass, then epochs of shuffled windows, in flat memory.

A file is read in blocks of consecutive rows. An epoch takes the blocks in an order of its own, several at a time: a
window, whose rows are shuffled, encoded and handed on while the next is being read.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import polars as pl
import torch

from polytask import rng
from polytask.data.batch import Part, Window
from polytask.data.convert import check_sides, convert_interactions, convert_side, placed, seconds
from polytask.data.encode import SIDES, Encoder, encoder_of
from polytask.data.pairs import Pairs
from polytask.data.parquet import Parquet
from polytask.data.source import Source, open_table
from polytask.data.split import Split, check_shares
from polytask.data.summary import Running
from polytask.data.table import Dataset, Rejects, judged
from polytask.data.text import KEPT, Raw, Reject
from polytask.errors import ConfigError, DataError, did_you_mean
from polytask.kernels.memory import keep_freed
from polytask.loss.base import Observed
from polytask.schema import Input, Schema, Side

BLOCK = 1 << 17  # consecutive rows that are read together
BLOCKS = 8  # blocks of a window
_READERS = 2  # threads that read and convert; decoding takes further ones of polars
_SAMPLE = 1 << 20  # training rows that are kept, for what is fitted on labels
_HELD = 1 << 22  # rows of valid and test together, which are kept in memory
_PAIRED = 1 << 26  # training rows whose pairs are kept, where a ranking task asks for them
_TRAIN, _VALID, _TEST, _BAD = range(4)

Cut = Callable[[pl.DataFrame, int], np.ndarray]
"""The part [M] of each row of a frame (0 train, 1 valid, 2 test), given the number of its first row."""


def stream(source: str | Path, schema: Schema, *, users: Source | None = None, items: Source | None = None) -> "Stream":
    """Open a Parquet file, or a folder of them, that need not fit in memory; ``users`` and ``items`` are read whole.

    Next comes :meth:`Stream.split`. What cannot be streamed is a :class:`ConfigError`.
    """
    files = Parquet.of(source)
    if not len(files):
        raise DataError(f"{files.name} is empty: it has no rows")
    empty = Raw(files.name, files.head(0), np.zeros(0, dtype=np.int64), "row")
    tables = [None if t is None else open_table(t, n) for t, n in ((users, "users"), (items, "items"))]
    schema = placed(schema, empty, *tables)
    check_sides(empty, schema, *tables)
    convert_interactions(empty, schema)  # a missing column, before anything is read
    if schema.histories:
        raise ConfigError(
            f"field '{schema.histories[0].name}': a history needs all rows of a user, which a stream never has at "
            "once; leave it out, or use read_dataset"
        )
    sides = {s: convert_side(t, schema, s) for s, t in zip(SIDES, tables, strict=True) if t is not None}
    return Stream(files, schema, {s: t for s, t in sides.items() if t is not None})


@dataclass(frozen=True, eq=False)
class Stream:
    """Interactions in ``files``, and the users' and items' tables in memory, if any, by side."""

    files: Parquet
    schema: Schema
    sides: dict[Side, pl.DataFrame]

    def split(self, kind: str = "random", *, valid: float = 0.05, test: float = 0.05, seed: int = 0) -> Split:
        """Deal the rows into train, valid and test, and fit the encoder on train, in one pass over the files.

        ``train`` is read anew in every epoch; ``valid`` and ``test`` are held in memory, 4 M rows at most.
        ``random``: each row by chance. ``temporal``: rows later than a quantile of the times are test, those before
        valid. The shares are met nearly. As in :func:`polytask.read_dataset` bad rows are left out, and more than
        1 % of them are a :class:`DataError`.
        """
        check_shares(valid, test, seed)
        if kind in ("leave_last", "per_user", "exercise", "official"):
            raise ConfigError(f"split: '{kind}' needs all rows in memory; a stream is split by 'random' or 'temporal'")
        if kind not in _CUTS:
            raise ConfigError(did_you_mean("split", kind, _CUTS))
        found = _Pass(self, _CUTS[kind](self, (valid, test), seed))
        found.run()
        return found.split()


class Streamed:
    """The train part of a stream; in training it stands where a :class:`Part` does.

    ``counts`` [blocks] are the training rows of every block, ``summary`` what the pass over all of them found, and
    ``sample`` some of them, spread evenly. What needs all rows at once is a :class:`ConfigError`.
    """

    name = "train"

    def __init__(self, files: Parquet, encoder: Encoder, cut: Cut, counts: np.ndarray, sample: Part) -> None:
        self.files, self.encoder, self.cut, self.counts, self.sample = files, encoder, cut, counts, sample
        self.popularity = torch.zeros(0 if encoder.items is None else len(encoder.items), dtype=torch.int64)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getattr__(self, name: str) -> NoReturn:
        if name in {f.name for f in fields(Part)} | {"heldout", "known"}:
            raise ConfigError(
                f"the training rows of {self.files.name} are streamed, and this reads them all at once ('{name}'); "
                "use read_dataset and split, or .sample, a Part of some of them"
            )
        raise AttributeError(name)

    @property
    def schema(self) -> Schema:
        """The schema of the data."""
        return self.encoder.schema

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The fields as the model sees them."""
        return self.encoder.inputs

    @property
    def sides(self) -> dict[str, Any]:
        """The encoded fields of all users and all items."""
        return self.sample.sides

    def observed(self, task: int) -> Observed:
        """What the loss of the ``task``-th task is fitted on: the labels of the sample, the popularity of all rows."""
        return self.sample.observed(task)._replace(popularity=self.popularity)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the files' footers, the encoder, and which rows are train."""
        digest = sha256(f"{self.files.fingerprint()}{self.sample.fingerprint}".encode())
        digest.update(self.counts.tobytes() + self.popularity.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs that occur, which takes a pass over the ids; they are held in memory."""
        if len(self) > _PAIRED:
            raise ConfigError(
                f"{len(self):,} training rows are too many to know which items each user had; "
                "use negatives = 'uniform_all' or 'in_batch', and no ranking metrics in valid and test"
            )
        found = Pairs.none()
        for blocks in _grouped(np.flatnonzero(self.counts), BLOCKS):
            own = self._part(blocks)
            found = found.plus(own.user, own.item)
        return found

    def windows(self, seed: int, epoch: int, start: int = 0) -> Iterator[Window]:
        """All rows in windows, in the order of (``seed``, ``epoch``), from row ``start`` on.

        What lies wholly before ``start`` is not read. One window is read ahead.
        """
        filled = np.flatnonzero(self.counts)
        order = filled[rng.generator(seed, "order", epoch).permutation(len(filled))]
        groups = _grouped(order, BLOCKS)
        ends = np.cumsum([self.counts[g].sum() for g in groups])
        first = int(np.searchsorted(ends, start, side="right"))
        begins = [start - (int(ends[first - 1]) if first else 0)] + [0] * len(groups)
        with ThreadPoolExecutor(1) as reader:
            coming = [reader.submit(self._part, groups[first])] if first < len(groups) else []
            for number in range(first, len(groups)):
                part = coming.pop().result()
                if number + 1 < len(groups):
                    coming.append(reader.submit(self._part, groups[number + 1]))
                rows = rng.generator(seed, "order", epoch, number + 1).permutation(len(part))
                yield Window(number, part, torch.from_numpy(rows), begins[number - first])

    def _part(self, blocks: np.ndarray) -> Part:
        """The training rows of some blocks, encoded."""
        with ThreadPoolExecutor(_READERS) as readers:
            frames = list(readers.map(self._read, (blocks * BLOCK).tolist()))
        return Part.of(self.name, self.encoder, pl.concat(frames))

    def _read(self, begin: int) -> pl.DataFrame:
        """The training rows of one block, converted."""
        frame, bad = convert_interactions(_raw(self.files, begin, BLOCK, self.schema), self.schema)
        train = (self.cut(frame, begin) == _TRAIN) & ~bad.mask.to_numpy()
        return frame if train.all() else frame.filter(train)


class _Pass:
    """One pass over all rows, in their order: counts, moments, a sample of train, and valid and test."""

    def __init__(self, stream: Stream, cut: Cut) -> None:
        self.stream, self.files, self.schema, self.cut = stream, stream.files, stream.schema, cut
        self.summary = Running(self.schema, set(stream.sides))
        self.counts: list[int] = []
        self.kept: dict[int, list[pl.DataFrame]] = {_TRAIN: [], _VALID: [], _TEST: []}
        self.every = -(-len(self.files) // _SAMPLE)
        self.seen = self.held = self.rejected = 0
        self.rejects: list[Reject] = []

    def run(self) -> None:
        """Read everything, a few blocks ahead."""
        keep_freed()  # every group of blocks takes the memory of an earlier one
        begins = range(0, len(self.files), BLOCK * BLOCKS)
        with ThreadPoolExecutor(_READERS) as readers:
            coming = deque(readers.submit(self._read, begin) for begin in begins[:_READERS])
            for begin in begins:
                self._take(*coming.popleft().result())
                if (ahead := begin + _READERS * begins.step) < len(self.files):
                    coming.append(readers.submit(self._read, ahead))
        self.told = judged(Rejects(len(self.files), len(self.files) - self.rejected, tuple(self.rejects)))

    def _read(self, begin: int) -> tuple[pl.DataFrame, np.ndarray, int, tuple[Reject, ...]]:
        """Some blocks' converted rows, the part of each, how many are bad, and the first of these."""
        raw = _raw(self.files, begin, BLOCK * BLOCKS, self.schema)
        frame, bad = convert_interactions(raw, self.schema)
        code = self.cut(frame, begin)
        if not bad.count:
            return frame, code, 0, ()
        return frame, np.where(bad.mask.to_numpy(), _BAD, code), bad.count, bad.rows(raw)

    def _take(self, frame: pl.DataFrame, code: np.ndarray, bad: int, rejects: tuple[Reject, ...]) -> None:
        self.rejected += bad
        self.rejects = [*self.rejects, *rejects][:KEPT]
        train = code == _TRAIN
        self.counts += np.add.reduceat(train.astype(np.int64), np.arange(0, len(train), BLOCK)).tolist()
        counted = frame.select(*self.summary.fields)
        self.summary.add(counted if train.all() else counted.filter(train))
        rows = np.flatnonzero(train)
        sampled = rows[-self.seen % self.every :: self.every]  # every so many of all training rows, whatever the blocks
        self.kept[_TRAIN].append(frame[sampled])
        self.seen += len(rows)
        for part in (_VALID, _TEST):
            self.kept[part].append(frame[np.flatnonzero(code == part)])
            self.held += self.kept[part][-1].height
        if self.held > _HELD:
            raise ConfigError(
                f"{self.files.name}: valid and test would hold over {_HELD:,} rows in memory; lower their shares "
                f"(of its {len(self.files):,} rows)"
            )

    def split(self) -> Split:
        """The three parts, after the pass."""
        counts = np.array(self.counts)
        if not counts.sum():
            raise DataError(f"{self.files.name}: the split leaves no training row; lower valid and test")
        frames = [pl.concat(self.kept[part]) for part in (_TRAIN, _VALID, _TEST)]
        users, items = (self.stream.sides.get(side) for side in SIDES)
        data = Dataset(self.files.name, self.schema, pl.concat(frames), users, items, self.told)
        encoder = encoder_of(data, self.summary)
        rows = np.split(np.arange(data.interactions.height), np.cumsum([f.height for f in frames[:2]]))
        sample, valid, test = (
            replace(Part.of(name, encoder, frame), source=data, rows=own) if frame.height else None
            for name, frame, own in zip(("train", "valid", "test"), frames, rows, strict=True)
        )
        assert sample is not None
        train = Streamed(self.files, encoder, self.cut, counts, sample)
        if self.schema.item is not None:
            table = self.summary.counts[self.schema.item].table()
            train.popularity[encoder.index(self.schema.item, table["value"])] = table["rows"].to_torch()
            train.popularity[0] = 0
        valid = valid and replace(valid, earlier=(train,))
        test = test and replace(test, earlier=(train,) if valid is None else (train, valid))
        return Split(cast(Part, train), valid, test)  # it stands where a part does


def _raw(files: Parquet, begin: int, rows: int, schema: Schema) -> Raw:
    """So many rows from ``begin`` on, as they were read."""
    last = min(begin + rows, len(files))
    return Raw(files.name, files.read(begin, last, schema.columns), np.arange(begin + 1, last + 1), "row")


def _grouped(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[a:b] for a, b in pairwise([*range(0, len(values), size), len(values)])]


def _random(stream: Stream, shares: tuple[float, float], seed: int) -> Cut:
    valid, test = shares

    def cut(frame: pl.DataFrame, begin: int) -> np.ndarray:
        if not valid + test:
            return np.zeros(frame.height, dtype=np.int8)
        blocks = range(begin // BLOCK, -(-(begin + frame.height) // BLOCK))
        draws = [rng.generator(seed, "split", 0, b).random(BLOCK, dtype=np.float32) for b in blocks]
        draw = np.concatenate(draws)[begin - blocks[0] * BLOCK :][: frame.height]
        return (draw < test + valid).astype(np.int8) + (draw < test)

    return cut


def _temporal(stream: Stream, shares: tuple[float, float], seed: int) -> Cut:
    files, name, (valid, test) = stream.files, stream.schema.time, shares
    if not name:
        raise ConfigError(f"split: {files.name} has no time column; name it in the schema or use 'random'")
    every = -(-len(files) // _HELD)
    spans = [(a, min(a + BLOCK * BLOCKS, len(files))) for a in range(0, len(files), BLOCK * BLOCKS)]
    times = np.concatenate([_times(files, span, name, every) for span in spans])
    starts = [np.quantile(times, 1 - share, method="lower") if share else np.inf for share in (valid + test, test)]

    def cut(frame: pl.DataFrame, begin: int) -> np.ndarray:
        time = frame[name].fill_null(-np.inf).to_numpy()
        late: np.ndarray = (time > starts[0]).astype(np.int8) + (time > starts[1])
        return late

    return cut


def _times(files: Parquet, span: tuple[int, int], name: str, every: int) -> np.ndarray:
    """The time of every so many rows, without those that have none."""
    column = files.read(*span, [name], every)[name]
    found: np.ndarray = seconds(column, files.name).drop_nulls().to_numpy()
    return found


_CUTS = {"random": _random, "temporal": _temporal}
