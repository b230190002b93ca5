"""Raw ids and values to integers and back; everything here is fitted on the training rows alone.

Index 0 means "unknown" and belongs to nobody. Where a users or items table is given it is the catalogue and
its order is the vocabulary; otherwise the vocabulary is the sorted training values.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask.data.table import Dataset
from polytask.schema import Field, Input, Schema, Side, Task


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Encoded fields of every user or item: ``ids`` [V, F] int64, ``numbers`` [V, F] float32; row 0 is unknown.

    A category has number 1; a number field has id 0 and its standardized value, so that an embedding row
    times its number serves both.
    """

    ids: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]


@dataclass(frozen=True, eq=False)
class Encoder:
    """What is needed to turn raw rows into model inputs.

    ``vocabularies``: per category field its values, the i-th at index i + 1. ``scales``: mean and standard
    deviation of each number field. ``users`` and ``items``: the encoded catalogue of each side, if any.
    """

    schema: Schema
    vocabularies: dict[str, pl.Series]
    scales: dict[str, tuple[float, float]]
    users: Catalogue | None = None
    items: Catalogue | None = None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The fields as the model sees them, with the number of embedding rows of each."""
        return tuple(Input(f.name, f.kind, f.side, self._size(f)) for f in self.schema.inputs)

    def _size(self, field: Field) -> int:
        return len(self.vocabularies[field.name]) + 1 if field.kind == "category" else 1

    def index(self, name: str, values: pl.Series) -> Tensor:
        """Indices [N] int64 of raw ``values`` in the vocabulary of field ``name``; 0 where unknown."""
        vocabulary = self.vocabularies[name]
        table = pl.DataFrame({"value": vocabulary, "index": np.arange(1, len(vocabulary) + 1)})
        found = pl.DataFrame({"value": values}).join(table, on="value", how="left", maintain_order="left")
        return torch.from_numpy(found["index"].fill_null(0).to_numpy().astype(np.int64))

    def raw(self, name: str, index: int) -> str | None:
        """The raw value at ``index`` of field ``name``; None for 0, the unknown."""
        return str(self.vocabularies[name][index - 1]) if index else None

    def side(self, frame: pl.DataFrame, side: Side) -> Catalogue:
        """Encode the fields of one side of every row of ``frame``."""
        columns = [self._column(frame, f) for f in self.schema.inputs if f.side == side]
        if not columns:
            empty = torch.zeros(frame.height, 0)
            return Catalogue(empty.long(), empty)
        return Catalogue(torch.stack([c[0] for c in columns], dim=1), torch.stack([c[1] for c in columns], dim=1))

    def unknown(self, side: Side) -> Catalogue:
        """One row in which every field of ``side`` is unknown: categories at index 0, numbers at their mean."""
        numbers = torch.tensor([[float(f.kind == "category") for f in self.schema.inputs if f.side == side]])
        return Catalogue(torch.zeros(numbers.shape, dtype=torch.int64), numbers)

    def labels(self, frame: pl.DataFrame) -> Tensor:
        """Labels [N, T] float32 of every row of ``frame``, NaN where a task has none.

        Binary: 1 or 0. Ranking: 1 on the rows that are positives, missing elsewhere.
        """
        columns = [_label(task, frame) for task in self.schema.tasks]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))

    def _column(self, frame: pl.DataFrame, field: Field) -> tuple[Tensor, Tensor]:
        if field.kind == "category":
            ids = self.index(field.name, frame[field.name])
            return ids, torch.ones(len(ids))
        mean, scale = self.scales[field.name]
        standard = ((frame[field.name] - mean) / scale).fill_null(0.0)
        return torch.zeros(frame.height, dtype=torch.int64), torch.from_numpy(standard.to_numpy().astype(np.float32))


def fit_encoder(data: Dataset, rows: np.ndarray) -> Encoder:
    """Fit the encoder on the interactions ``rows`` [M] (the training rows) of ``data``."""
    train = data.interactions[rows]
    sources = {"user": _side_source(data.users, train), "item": _side_source(data.items, train), "context": train}
    owned = {"user": data.users is not None, "item": data.items is not None, "context": False}
    vocabularies: dict[str, pl.Series] = {}
    scales: dict[str, tuple[float, float]] = {}
    for field in data.schema.inputs:
        column = sources[field.side][field.name]
        if field.kind == "category":
            unique = column.drop_nulls().unique(maintain_order=True)
            vocabularies[field.name] = unique if owned[field.side] else unique.sort()
        else:
            if owned[field.side]:  # the catalogue is known, its numbers count for those who are in train
                name = str(data.schema.user if field.side == "user" else data.schema.item)
                column = column.filter(sources[field.side][name].is_in(train[name].unique().implode()))
            scales[field.name] = _scale(column)
    bare = Encoder(data.schema, vocabularies, scales)
    sides = {s: _catalogue(bare, frame, name) for s, frame, name in _sides(data, sources)}
    return Encoder(data.schema, vocabularies, scales, sides.get("user"), sides.get("item"))


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
    wanted = [f.name for f in encoder.schema.inputs if f.side == side]
    ordered = pl.DataFrame({name: encoder.vocabularies[name]}).join(
        frame.select(wanted).unique(name, keep="first", maintain_order=True), on=name, how="left", maintain_order="left"
    )
    encoded = encoder.side(ordered, side)
    unknown = encoder.unknown(side)
    return Catalogue(torch.cat([unknown.ids, encoded.ids]), torch.cat([unknown.numbers, encoded.numbers]))


def _scale(column: pl.Series) -> tuple[float, float]:
    mean, scale = column.mean(), column.std()
    return float(str(mean or 0.0)), float(str(scale)) if scale else 1.0
