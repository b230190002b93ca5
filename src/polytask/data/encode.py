"""Raw ids and values to integers and back; everything here is fitted on the training rows alone.

Index 0 means "unknown" and belongs to nobody. Where a users or items table is given it is the catalogue and
its order is the vocabulary; otherwise the vocabulary is the sorted training values.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask.data.lookup import Lookup
from polytask.data.summary import Summary, Whole, exploded, scaled, single
from polytask.data.table import Dataset
from polytask.schema import Field, Input, Schema, Side, Task

SIDES: tuple[Side, Side] = ("user", "item")


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

    def take(self, rows: Tensor) -> "Catalogue":
        """The ``rows`` [M]."""
        if not self.ids.shape[1]:
            return Catalogue.empty(len(rows))
        # index_select copies whole rows: several times the speed of indexing by a tensor
        return Catalogue(self.ids.index_select(0, rows), self.numbers.index_select(0, rows))

    def beside(self, other: "Catalogue") -> "Catalogue":
        """These slots and then those of ``other``, row by row."""
        if not self.ids.shape[1] or not other.ids.shape[1]:
            return self if other.ids.shape[1] == 0 else other
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
    lookups: dict[str, Lookup] = field(default_factory=dict, repr=False)  # made when whole numbers are looked up

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

    @cached_property
    def _ids_alone(self) -> dict[Side, bool]:
        """Whether an id is all that is read of a side, and read by itself: its row in the catalogue is its index."""
        found = {}
        for side in SIDES:
            own = [f for f in self.schema.inputs if f.side == side and f.kind != "history"]
            found[side] = len(own) == 1 and not own[0].buckets
        return found

    def rows_of(self, side: Side, index: Tensor) -> Catalogue:
        """The fields of the users or items ``index`` [M]; none where the schema has no such side."""
        catalogue = self.users if side == "user" else self.items
        if catalogue is None:
            return Catalogue.empty(len(index))
        if self._ids_alone[side]:
            return Catalogue(index[:, None], torch.ones(len(index), 1))  # spares a look at a large table
        return catalogue.take(index)

    def index(self, name: str, values: pl.Series) -> Tensor:
        """Indices [N] int64 of raw ``values`` in the vocabulary of field ``name``; 0 where unknown."""
        if values.dtype.is_integer():
            if name not in self.lookups:
                self.lookups[name] = Lookup.of(self.vocabularies[name])
            return torch.from_numpy(self.lookups[name].places_of(values))
        return _looked_up(values, self.vocabularies[name], np.arange(1, len(self.vocabularies[name]) + 1))

    def raw(self, name: str, index: int) -> str | None:
        """The raw value at ``index`` of field ``name``; None for 0, the unknown."""
        return str(self.vocabularies[name][index - 1]) if index else None

    def side(self, frame: pl.DataFrame, side: Side) -> Catalogue:
        """Encode the fields of one side of every row of ``frame``; histories are not columns and left out."""
        own = [f for f in self.schema.inputs if f.side == side and f.kind != "history"]
        if not own:
            return Catalogue.empty(frame.height)
        ids, numbers = zip(*((c.ids, c.numbers) for c in (self._slots(frame, one) for one in own)), strict=True)
        return Catalogue(torch.cat(ids, dim=1), torch.cat(numbers, dim=1))

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
            standard = ((scaled(values, field) - mean) / scale).fill_null(0.0).to_numpy().astype(np.float32)
            return Catalogue(torch.zeros(len(values), 1, dtype=torch.int64), torch.from_numpy(standard)[:, None])
        ids = self._rows(values, field)
        return Catalogue(ids[:, None], torch.ones(len(ids), 1))

    def _rows(self, values: pl.Series, field: Field) -> Tensor:
        """Embedding row [N] of each value: its index, or its bucket."""
        if not field.buckets:
            return self.index(field.name, values)
        known = values.drop_nulls().unique()
        return _looked_up(values, known, _buckets(known.cast(pl.String), field.buckets))

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
    return encoder_of(data, Whole(data.interactions[rows]))


def encoder_of(data: Dataset, train: Summary) -> Encoder:
    """Fit the encoder on a summary of the training rows, and on the users' and items' tables of ``data``."""
    tables: dict[Side, pl.DataFrame | None] = {"user": data.users, "item": data.items}
    ids = {name: next(f for f in data.schema.inputs if f.name == name) for name in _ids(data.schema).values()}
    bare = Encoder(data.schema, {}, {})
    for one in data.schema.inputs:
        table = tables.get(one.side)
        if one.kind == "history":
            continue
        if one.kind != "number":
            if not one.buckets or one.name in ids:  # else nothing is listed; an id's index is its place in a catalogue
                bare.vocabularies[one.name] = _vocabulary(one, table, train, listed=one.name in ids)
            continue
        source = train
        if table is not None:  # the catalogue is known, its numbers count for those who are in train
            name = _ids(data.schema)[one.side]
            source = Whole(table.filter(pl.col(name).is_in(train.values(ids[name]).cast(pl.String).implode())))
        if one.scale == "quantile":
            bare.edges[one.name] = source.edges(one)
        else:
            bare.scales[one.name] = source.scale(one)
    sides = {side: _catalogue(bare, tables[side], side, name) for side, name in _ids(data.schema).items()}
    return replace(bare, users=sides.get("user"), items=sides.get("item"))


def _ids(schema: Schema) -> dict[Side, str]:
    """The id column of each side that has one."""
    named: dict[Side, str | None] = {"user": schema.user, "item": schema.item}
    return {side: name for side, name in named.items() if name}


def _vocabulary(one: Field, table: pl.DataFrame | None, train: Summary, *, listed: bool) -> pl.Series:
    """The values of a field that are told apart, as text: in order of the ``table`` that lists them, else sorted.

    Those that occur fewer than ``min_count`` times are left out: ids in train, what a table says in the table.
    """
    if table is None:
        return train.values(one, one.min_count).cast(pl.String).sort().alias(one.name)
    column = single(table[one.name], one).unique(maintain_order=True)
    if one.min_count > 1:
        often = (train if listed else Whole(table)).values(one, one.min_count)
        column = column.filter(column.is_in(often.cast(pl.String).implode()))
    return column


def _looked_up(values: pl.Series, known: pl.Series, places: np.ndarray) -> Tensor:
    """For each of ``values`` its place, given those of the ``known`` ones; 0 for others."""
    table = pl.DataFrame({"value": known, "index": places})
    found = pl.DataFrame({"value": values}).join(table, on="value", how="left", maintain_order="left")
    return torch.from_numpy(found["index"].fill_null(0).to_numpy().astype(np.int64))


def _buckets(values: pl.Series, buckets: int) -> np.ndarray:
    """A bucket 1..buckets for each value, the same on every machine and in every version."""
    digests = (hashlib.blake2b(v.encode("utf-8", "surrogatepass"), digest_size=8).digest() for v in values)
    return np.array([int.from_bytes(d, "little") % buckets + 1 for d in digests], dtype=np.int64)


def _label(task: Task, frame: pl.DataFrame) -> np.ndarray:
    if task.column is None:
        return np.ones(frame.height)
    values = frame[task.column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if (condition := task.condition) is not None:
        values = np.where(np.isnan(values), np.nan, condition.holds(values).astype(np.float64))
    return np.where(values > 0, 1.0, np.nan) if task.kind == "ranking" else values


def _catalogue(encoder: Encoder, table: pl.DataFrame | None, side: Side, name: str) -> Catalogue:
    """Encode one row per id, in vocabulary order, after an all-unknown row 0."""
    if encoder._ids_alone[side]:
        ids = torch.arange(1 + len(encoder.vocabularies[name]))
        return Catalogue(ids[:, None], torch.ones(len(ids), 1))
    rows = pl.DataFrame({name: encoder.vocabularies[name]})
    if table is not None:
        wanted = [f.name for f in encoder.schema.inputs if f.side == side and f.kind != "history"]
        rows = rows.join(table.select(wanted), on=name, how="left", maintain_order="left")
    encoded, unknown = encoder.side(rows, side), encoder.unknown(side)
    return Catalogue(torch.cat([unknown.ids, encoded.ids]), torch.cat([unknown.numbers, encoded.numbers]))
