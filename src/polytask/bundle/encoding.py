"""The encoder of a bundle: vocabularies as a Parquet table, scales and edges as JSON, encoded sides as tensors."""

from itertools import pairwise
from math import isfinite
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from polytask.data.encode import Catalogue, Encoder
from polytask.errors import StateError
from polytask.files import write_json
from polytask.intact import read_object, read_table
from polytask.schema import Schema

VOCABULARY, SCALES, SIDES = "vocabulary.parquet", "encoder.json", "sides.safetensors"
_SLOTS = 1 << 16  # more values in a row no model was trained on


def write_encoder(folder: Path, encoder: Encoder) -> None:
    """Write all of ``encoder`` but its schema into ``folder``."""
    columns = [
        pl.DataFrame({"field": [name] * len(values), "value": values}, schema={"field": pl.String, "value": pl.String})
        for name, values in encoder.vocabularies.items()
    ]
    empty = pl.DataFrame(schema={"field": pl.String, "value": pl.String})
    pl.concat([empty, *columns]).write_parquet(folder / VOCABULARY)
    edges = {name: values.tolist() for name, values in encoder.edges.items()}
    write_json(folder / SCALES, {"scales": encoder.scales, "edges": edges, "fields": list(encoder.vocabularies)})
    save_file(_tensors(encoder), folder / SIDES)


def read_encoder(folder: Path, schema: Schema) -> Encoder:
    """Read what :func:`write_encoder` wrote; what does not fit together is a :class:`StateError`."""
    _check_slots(folder, schema)
    text, frame = read_object(folder / SCALES), read_table(folder / VOCABULARY)
    by_field = {str(key[0]): part["value"] for key, part in frame.partition_by("field", as_dict=True).items()}
    nothing = pl.Series("value", [], dtype=pl.String)
    vocabularies = {name: by_field.get(name, nothing).rename(name) for name in text["fields"]}
    tensors = load_file(folder / SIDES)
    encoder = Encoder(
        schema,
        vocabularies,
        {name: (float(mean), float(scale)) for name, (mean, scale) in text["scales"].items()},
        {name: np.array(values, dtype=np.float64) for name, values in text["edges"].items()},
        _side(tensors, "user"),
        _side(tensors, "item"),
    )
    _check_fitted(folder, encoder)
    _check_sides(folder, encoder)
    return encoder


def _tensors(encoder: Encoder) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, side in (("user", encoder.users), ("item", encoder.items)):
        if side is not None:
            found |= {f"{name}.ids": side.ids.int().contiguous(), f"{name}.numbers": side.numbers.contiguous()}
    return found


def _side(tensors: dict[str, Tensor], name: str) -> Catalogue | None:
    if f"{name}.ids" not in tensors:
        return None
    return Catalogue(tensors[f"{name}.ids"].long(), tensors[f"{name}.numbers"])


def _check_slots(folder: Path, schema: Schema) -> None:
    """A row takes as much memory as its bags and histories are long, so their lengths must be such as are trained."""
    if sum(f.length for f in schema.inputs if f.kind in ("categories", "history")) > _SLOTS:
        raise StateError(f"{folder / SCALES}: bags and histories of over {_SLOTS:,} values in all; refused")


def _check_fitted(folder: Path, encoder: Encoder) -> None:
    """The schema's fields, and no others, have what is fitted to them: values once, finite scales, edges in order."""
    fields = {f.name: f for f in encoder.schema.inputs if f.kind != "history"}
    ids = {encoder.schema.user, encoder.schema.item}
    listed = {n for n, f in fields.items() if f.kind != "number" and (n in ids or not f.buckets)}
    cut = {n for n, f in fields.items() if f.scale == "quantile" and f.kind == "number"}
    scaled = {n for n, f in fields.items() if f.kind == "number"} - cut
    for what, found, needed in (
        ("values", encoder.vocabularies, listed),
        ("scales", encoder.scales, scaled),
        ("edges", encoder.edges, cut),
    ):
        if differing := sorted(found.keys() ^ needed):
            raise StateError(f"{folder / SCALES}: its {what} are not those of field '{differing[0]}'; refused")
    for name, values in encoder.vocabularies.items():
        if values.null_count() or values.n_unique() < len(values):
            raise StateError(f"{folder / VOCABULARY}: field '{name}' has a value twice, or none; refused")
    fine = all(isfinite(mean) and isfinite(scale) and scale > 0 for mean, scale in encoder.scales.values())
    if not fine or not all(a < b for edges in encoder.edges.values() for a, b in pairwise(edges)):
        raise StateError(f"{folder / SCALES}: scales must be finite and above 0, edges ascend; refused")


def _check_sides(folder: Path, encoder: Encoder) -> None:
    """Every index must lie inside the vocabulary it points to: an embedding is looked up by it without a check."""
    for name, side, values in (("user", "user", encoder.users), ("item", "item", encoder.items)):
        if (column := getattr(encoder.schema, name)) is None:
            continue
        inputs = [i for i in encoder.inputs if i.side == side and i.kind != "history"]
        sizes = torch.tensor([1 if i.kind == "number" else i.size for i in inputs for _ in range(i.slots)])
        rows = len(encoder.vocabularies[column]) + 1
        fits = values is not None and values.ids.shape == values.numbers.shape == (rows, len(sizes))
        if not fits or values is None or not bool(((values.ids >= 0) & (values.ids < sizes)).all()):
            raise StateError(f"{folder / SIDES}: the {name}s do not fit the vocabulary; the bundle is damaged")
        if not bool(values.numbers.isfinite().all()):
            raise StateError(f"{folder / SIDES}: a number of the {name}s is not finite; the bundle is damaged")
