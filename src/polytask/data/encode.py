"""Raw ids and values to integers and back; everything here is fitted on the training rows alone.

Index 0 means "unknown" and belongs to nobody. Where a users or items table is given it is the catalogue and
its order is the vocabulary; otherwise the vocabulary is the sorted training values.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask.data.table import Dataset
from polytask.schema import Field, Input, Schema, Side, Task


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Encoded fields of every user or item: ``ids`` [V, S] int64, ``numbers`` [V, S] float32; row 0 is unknown.

    A field takes as many of the S slots as it holds values. A category has number 1; a bag of n categories 1 / n in
    n slots and 0 in the rest; a number field id 0 and its scaled value: an embedding row times its number, summed
    over a field's slots, serves all.
    """

    ids: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    @classmethod
    def empty(cls, rows: int) -> "Catalogue":
        """``rows`` rows without any slot."""
        return cls(torch.zeros(rows, 0, dtype=torch.int64), torch.zeros(rows, 0))

    def beside(self, other: "Catalogue") -> "Catalogue":
        """These slots and then those of ``other``, row by row."""
        return Catalogue(torch.cat([self.ids, other.ids], dim=1), torch.cat([self.numbers, other.numbers], dim=1))


@dataclass(frozen=True, eq=False)
class Encoder:
    """What is needed to turn raw rows into model inputs.

    ``vocabularies``: per category field its values, the i-th at index i + 1. ``scales``: mean and standard
    deviation of each number field, of log(1 + x) where it is so scaled. ``edges``: the inner edges of each field
    cut into quantile buckets. ``users`` and ``items``: the encoded catalogue of each side, if any, histories aside.
    """

    schema: Schema
    vocabularies: dict[str, pl.Series]
    scales: dict[str, tuple[float, float]]
    edges: dict[str, np.ndarray] = field(default_factory=dict)
    users: Catalogue | None = None
    items: Catalogue | None = None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The fields as the model sees them, with the number of embedding rows and slots of each."""
        return tuple(self._input(f) for f in self.schema.inputs)

    def _input(self, field: Field) -> Input:
        if field.kind == "history":
            return Input(field.name, field.kind, "user", 0, field.length, str(self.schema.item), field.pool)
        if field.name in self.edges:
            return Input(field.name, "category", field.side, len(self.edges[field.name]) + 2)
        if field.kind == "number":
            return Input(field.name, field.kind, field.side, 1)
        slots = field.length if field.kind == "categories" else 1
        rows = field.buckets or len(self.vocabularies[field.name])
        return Input(field.name, field.kind, field.side, rows + 1, slots)

    def index(self, name: str, values: pl.Series) -> Tensor:
        """Indices [N] int64 of raw ``values`` in the vocabulary of field ``name``; 0 where unknown."""
        return _looked_up(values, self.vocabularies[name], np.arange(1, len(self.vocabularies[name]) + 1))

    def raw(self, name: str, index: int) -> str | None:
        """The raw value at ``index`` of field ``name``; None for 0, the unknown."""
        return str(self.vocabularies[name][index - 1]) if index else None

    def side(self, frame: pl.DataFrame, side: Side) -> Catalogue:
        """Encode the fields of one side of every row of ``frame``; histories are not columns and left out."""
        found = Catalogue.empty(frame.height)
        for one in self.schema.inputs:
            if one.side == side and one.kind != "history":
                found = found.beside(self._slots(frame, one))
        return found

    def unknown(self, side: Side) -> Catalogue:
        """One row in which every field of ``side`` is unknown: categories at index 0, numbers at their mean."""
        inputs = [i for i in self.inputs if i.side == side and i.kind != "history"]
        numbers = torch.tensor([[float(i.kind == "category") for i in inputs for _ in range(i.slots)]])
        return Catalogue(torch.zeros(numbers.shape, dtype=torch.int64), numbers)

    def labels(self, frame: pl.DataFrame) -> Tensor:
        """Labels [N, T] float32 of every row of ``frame``, NaN where a task has none.

        Binary: 1 or 0. Ranking: 1 on the rows that are positives, missing elsewhere.
        """
        columns = [_label(task, frame) for task in self.schema.tasks]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))

    def extra(self, frame: pl.DataFrame, kind: Literal["by", "row_weight"]) -> Tensor | None:
        """A further column of each task, [N, T] float32; NaN (``by``) or 1 (``row_weight``) where it has none.

        None where no task names such a column.
        """
        names = [getattr(task, kind) for task in self.schema.tasks]
        if not any(names):
            return None
        default = np.full(frame.height, np.nan if kind == "by" else 1.0)
        missing = np.nan if kind == "by" else 0.0
        columns = [default if n is None else frame[n].cast(pl.Float64).fill_null(missing).to_numpy() for n in names]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))

    def _slots(self, frame: pl.DataFrame, field: Field) -> Catalogue:
        values = frame[field.name]
        if field.kind == "categories":
            return self._bag(values, field)
        if field.name in self.edges:
            places = np.searchsorted(self.edges[field.name], values.fill_null(0.0).to_numpy(), side="right") + 1
            ids = torch.from_numpy(np.where(values.is_null().to_numpy(), 0, places))
            return Catalogue(ids[:, None], torch.ones(len(ids), 1))
        if field.kind == "number":
            mean, scale = self.scales[field.name]
            standard = ((_scaled(values, field) - mean) / scale).fill_null(0.0).to_numpy().astype(np.float32)
            return Catalogue(torch.zeros(len(values), 1, dtype=torch.int64), torch.from_numpy(standard)[:, None])
        ids = self._rows(values, field)
        return Catalogue(ids[:, None], torch.ones(len(ids), 1))

    def _rows(self, values: pl.Series, field: Field) -> Tensor:
        """Embedding row [N] of each value: its index, or its bucket."""
        if not field.buckets:
            return self.index(field.name, values)
        known = values.drop_nulls().unique()
        return _looked_up(values, known, _buckets(known, field.buckets))

    def _bag(self, values: pl.Series, field: Field) -> Catalogue:
        """The first ``length`` known values of each row, each with number 1 / (how many there are)."""
        rows, single = exploded(values, field)
        ids = self._rows(single, field)
        rows, ids = rows[ids > 0], ids[ids > 0]
        counts = torch.bincount(rows, minlength=len(values))
        place = torch.arange(len(rows)) - (counts.cumsum(dim=0) - counts)[rows]
        kept = place < field.length
        slots = torch.zeros(len(values), field.length, dtype=torch.int64)
        slots[rows[kept], place[kept]] = ids[kept]
        share = 1.0 / counts.clamp(min=1, max=field.length)
        return Catalogue(slots, (slots > 0) * share[:, None])


def fit_encoder(data: Dataset, rows: np.ndarray) -> Encoder:
    """Fit the encoder on the interactions ``rows`` [M] (the training rows) of ``data``."""
    train = data.interactions[rows]
    sources = {"user": _side_source(data.users, train), "item": _side_source(data.items, train), "context": train}
    owned = {"user": data.users is not None, "item": data.items is not None, "context": False}
    bare = Encoder(data.schema, {}, {})
    for one in data.schema.inputs:
        if one.kind == "history":
            continue
        column = sources[one.side][one.name]
        if one.kind != "number":
            ids = one.name in (data.schema.user, data.schema.item)
            if one.buckets and not ids:
                continue  # nothing is listed, but for ids, whose index is their place in the catalogue
            seen = train[one.name] if ids else column
            bare.vocabularies[one.name] = _vocabulary(column, seen, one, listed=owned[one.side])
            continue
        if owned[one.side]:  # the catalogue is known, its numbers count for those who are in train
            name = str(data.schema.user if one.side == "user" else data.schema.item)
            column = column.filter(sources[one.side][name].is_in(train[name].unique().implode()))
        if one.scale == "quantile":
            bare.edges[one.name] = _edges(column, one.buckets)
        else:
            bare.scales[one.name] = _scale(_scaled(column, one))
    sides = {s: _catalogue(bare, frame, name) for s, frame, name in _sides(data, sources)}
    return replace(bare, users=sides.get("user"), items=sides.get("item"))


def _vocabulary(column: pl.Series, seen: pl.Series, field: Field, *, listed: bool) -> pl.Series:
    """The values of a column that are told apart: in order of the table that lists them, else sorted.

    Those that ``seen`` holds fewer than ``min_count`` times are left out.
    """
    if field.kind == "categories":
        column = seen = exploded(column, field)[1]
    if field.min_count > 1:
        counts = seen.drop_nulls().value_counts(name="rows").filter(pl.col("rows") >= field.min_count)
        column = column.filter(column.is_in(counts[seen.name].implode()))
    return column.drop_nulls().unique(maintain_order=True) if listed else column.drop_nulls().unique().sort()


def _looked_up(values: pl.Series, known: pl.Series, places: np.ndarray) -> Tensor:
    """For each of ``values`` its place, given those of the ``known`` ones; 0 for others."""
    table = pl.DataFrame({"value": known, "index": places})
    found = pl.DataFrame({"value": values}).join(table, on="value", how="left", maintain_order="left")
    return torch.from_numpy(found["index"].fill_null(0).to_numpy().astype(np.int64))


def exploded(values: pl.Series, field: Field) -> tuple[Tensor, pl.Series]:
    """The values of every bag [M], and the row each stands in [M]; a value that is there twice counts once."""
    frame = pl.DataFrame({"row": np.arange(len(values)), "value": values.str.split(field.separator)})
    frame = frame.explode("value").filter(pl.col("value").is_not_null() & (pl.col("value") != ""))
    frame = frame.unique(maintain_order=True)
    return torch.from_numpy(frame["row"].to_numpy().copy()), frame["value"]


def _buckets(values: pl.Series, buckets: int) -> np.ndarray:
    """A bucket 1..buckets for each value, the same on every machine and in every version."""
    digests = (hashlib.blake2b(v.encode("utf-8", "surrogatepass"), digest_size=8).digest() for v in values)
    return np.array([int.from_bytes(d, "little") % buckets + 1 for d in digests], dtype=np.int64)


def _scaled(column: pl.Series, field: Field) -> pl.Series:
    """The number before it is standardized: itself, or log(1 + x) with the sign of x kept."""
    if field.scale == "log":
        return column.abs().log1p() * column.sign()
    return column


def _edges(column: pl.Series, buckets: int) -> np.ndarray:
    """Inner edges of ``buckets`` of equally many training rows; fewer where values repeat."""
    known = column.drop_nulls().to_numpy()
    if not len(known):
        return np.zeros(0)
    inner = np.quantile(known, np.arange(1, buckets) / buckets)
    return np.unique(inner)


def _label(task: Task, frame: pl.DataFrame) -> np.ndarray:
    if task.column is None:
        return np.ones(frame.height)
    values = frame[task.column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if (condition := task.condition) is not None:
        values = np.where(np.isnan(values), np.nan, condition.holds(values).astype(np.float64))
    return np.where(values > 0, 1.0, np.nan) if task.kind == "ranking" else values


def _side_source(table: pl.DataFrame | None, train: pl.DataFrame) -> pl.DataFrame:
    return train if table is None else table


def _sides(data: Dataset, sources: dict[str, pl.DataFrame]) -> list[tuple[str, pl.DataFrame, str]]:
    named = (("user", data.schema.user), ("item", data.schema.item))
    return [(side, sources[side], name) for side, name in named if name]


def _catalogue(encoder: Encoder, frame: pl.DataFrame, name: str) -> Catalogue:
    """Encode one row per id, in vocabulary order, after an all-unknown row 0."""
    side: Side = "user" if name == encoder.schema.user else "item"
    wanted = [f.name for f in encoder.schema.inputs if f.side == side and f.kind != "history"]
    ordered = pl.DataFrame({name: encoder.vocabularies[name]}).join(
        frame.select(wanted).unique(name, keep="first", maintain_order=True), on=name, how="left", maintain_order="left"
    )
    encoded = encoder.side(ordered, side)
    unknown = encoder.unknown(side)
    return Catalogue(torch.cat([unknown.ids, encoded.ids]), torch.cat([unknown.numbers, encoded.numbers]))


def _scale(column: pl.Series) -> tuple[float, float]:
    mean, scale = column.mean(), column.std()
    return float(str(mean or 0.0)), float(str(scale)) if scale else 1.0
