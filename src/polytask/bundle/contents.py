"""All that a bundle's folder holds, in memory; written as one folder, and read back only if it proves intact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from polytask.bundle.card import card
from polytask.bundle.encoding import SCALES, VOCABULARY, read_encoder, write_encoder
from polytask.bundle.encoding import SIDES as ENCODED
from polytask.bundle.restore import restore
from polytask.calibration import Calibration, from_dict
from polytask.data.encode import Encoder
from polytask.errors import StateError
from polytask.files import MANIFEST, verify_folder, write_folder, write_json, write_text
from polytask.intact import read_object, read_table, refusing
from polytask.nn.design import Design
from polytask.nn.models import Model
from polytask.recommend import index
from polytask.recommend.mix import Mix
from polytask.recommend.seen import SEEN, Seen
from polytask.schema import Schema

FORMAT = 1
"""The version of the folder's form; a later one is refused."""
WEIGHTS, CONFIG, SCHEMA, FACTS, CATALOGUE = (
    "model.safetensors", "config.json", "schema.json", "facts.json", "catalogue.safetensors"
)  # fmt: skip
GOLDEN, CALIBRATION, TOML, CARD = "golden.parquet", "calibration.json", "config.toml", "README.md"
SIDES = {"user": "users.parquet", "item": "items.parquet"}
NEEDED = (WEIGHTS, CONFIG, SCHEMA, FACTS, CATALOGUE, GOLDEN, CALIBRATION, TOML, CARD, VOCABULARY, SCALES, ENCODED, SEEN)
"""The files every bundle has."""
OPTIONAL = (*SIDES.values(), *index.FILES)
"""The files it may have; any other file in the folder is not read."""
_WITH_GAPS = ("row_residual",)  # a row without a rating has none
_FACTS: dict[str, type] = {"name": str, "created": str, "mix": str, "tasks": list, "counts": dict, "context": list}
_FACTS |= {"display": dict, "verdicts": list}
_EXACT = 1e-4  # relative: between two kinds of processor sums differ in their last digits


@dataclass(frozen=True, eq=False)
class Contents:
    """A model and what it needs to answer for raw ids.

    ``tasks`` were trained. ``popularity`` [I + 1] counts the training rows of every item; ``by`` [I + 1, T] is a
    typical second column of every item. ``tables`` are the raw users and items. ``golden`` are raw rows with what the
    model says of them. ``facts`` are for people to read, ``near`` an index over many items, to be written along.
    """

    model: Model
    design: dict[str, Any]
    tasks: tuple[str, ...]
    encoder: Encoder
    calibration: Mapping[str, Calibration]
    seen: Seen
    popularity: Tensor
    by: Tensor
    tables: Mapping[str, pl.DataFrame]
    golden: pl.DataFrame
    facts: dict[str, Any]
    toml: str = ""
    near: index.Index | None = None


def write(path: Path, contents: Contents) -> None:
    """Write ``contents`` to the folder ``path``, whole or not at all; only a bundle or an empty folder is replaced."""
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or _is_bundle(path))):
        raise StateError(f"{path} exists and is no bundle, so it would be lost; name a new folder")
    write_folder(path, lambda folder: _fill(folder, contents))


def read(path: Path) -> tuple[Contents, str]:
    """Read a bundle, and its version: 16 hexadecimal digits that two different bundles do not share.

    Every file is compared with the manifest, every tensor with its shape and for finiteness; anything amiss is a
    :class:`StateError` that says what. Files that no bundle has are not looked at.
    """
    if not (path / MANIFEST).is_file():
        raise StateError(f"{path} is no bundle: it has no {MANIFEST}; make one with 'polytask bundle RUN'")
    with refusing(path):
        form = read_object(path / MANIFEST).get("format")
        if form != FORMAT:
            raise StateError(
                f"{path} is a bundle of format {form!r}, this version reads {FORMAT}; use a newer polytask"
            )
        manifest = verify_folder(path)
        _check_files(path, manifest["files"])
        return _read(path, manifest), sha256((path / MANIFEST).read_bytes()).hexdigest()[:16]


def check_golden(path: Path, contents: Contents, score: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Refuse a bundle whose model does not say of its golden rows what it said when it was saved."""
    golden, columns = contents.golden, [f"value/{t}" for t in contents.tasks]
    if not golden.height:
        return
    now = score(golden.drop(columns)).get_columns()[-len(columns) :]
    for name, values in zip(columns, now, strict=True):
        then, found = (s.to_numpy().astype(np.float64) for s in (golden[name], values))
        size = np.max(np.abs(then), initial=0.0, where=np.isfinite(then))
        alike = np.isclose(then, found, rtol=_EXACT, atol=_EXACT * size, equal_nan=True)
        if not alike.all():
            row = int(np.argmin(alike))
            raise StateError(
                f"{path}: the model does not give its golden answers (row {row}, {name.removeprefix('value/')}: "
                f"{found[row]:.6g}, stored {then[row]:.6g}); refused"
            )


def _is_bundle(path: Path) -> bool:
    try:
        return {"format", "tensors"} <= read_object(path / MANIFEST).keys()
    except (OSError, StateError):
        return False


def _fill(folder: Path, contents: Contents) -> dict[str, Any]:
    tensors = {n: t.detach().cpu().contiguous() for n, t in contents.model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    save_file({"popularity": contents.popularity, "by": contents.by}, folder / CATALOGUE)
    write_encoder(folder, contents.encoder)
    contents.seen.write(folder)
    for side, table in contents.tables.items():
        table.write_parquet(folder / SIDES[side])
    if contents.near is not None:
        contents.near.save(folder)
    contents.golden.write_parquet(folder / GOLDEN)
    write_json(folder / SCHEMA, contents.encoder.schema.to_dict())
    design = {"library_name": "polytask", "format": FORMAT, "design": contents.design, "tasks": contents.tasks}
    write_json(folder / CONFIG, design | {"timed": contents.seen.timed})
    write_json(folder / CALIBRATION, {t: c.to_dict() for t, c in contents.calibration.items()})
    write_json(folder / FACTS, contents.facts)
    write_text(folder / TOML, contents.toml)
    write_text(folder / CARD, card(contents.facts))
    shapes = {n: {"dtype": str(t.dtype).removeprefix("torch."), "shape": [*t.shape]} for n, t in tensors.items()}
    return {"format": FORMAT, "tensors": shapes}


def _check_files(path: Path, listed: Mapping[str, Any]) -> None:
    """Every file that is going to be read must be one that the manifest vouches for."""
    for name in (*NEEDED, *OPTIONAL):
        if name not in listed and (name in NEEDED or (path / name).exists()):
            raise StateError(f"{path / name} is not in the {MANIFEST}, so nothing vouches for it; refused")


def _read(path: Path, manifest: Mapping[str, Any]) -> Contents:
    config, facts = read_object(path / CONFIG), read_object(path / FACTS)
    encoder = read_encoder(path, Schema.from_dict(read_object(path / SCHEMA)))
    tensors = load_file(path / WEIGHTS)
    _check_tensors(path, tensors, manifest["tensors"])
    tasks = tuple(encoder.schema.task(t).name for t in config["tasks"])
    if not tasks or len(set(tasks)) < len(tasks):
        raise StateError(f"{path / CONFIG}: tasks {list(tasks)} must be different and at least one; refused")
    _check_facts(path / FACTS, facts, tasks)
    users, items = (0 if side is None else len(side) - 1 for side in (encoder.users, encoder.items))
    catalogue = load_file(path / CATALOGUE)
    _check_catalogue(path / CATALOGUE, catalogue, (items + 1, len(encoder.schema.tasks)))
    golden = read_table(path / GOLDEN)
    if golden.height and (missing := [t for t in tasks if f"value/{t}" not in golden.columns]):
        raise StateError(f"{path / GOLDEN} has no answers of task '{missing[0]}'; refused")
    return Contents(
        model=restore(encoder, Design.from_dict(config["design"]), tensors),
        design=config["design"],
        tasks=tasks,
        encoder=encoder,
        calibration=_calibration(path / CALIBRATION, encoder.schema, tasks),
        seen=Seen.read(path, users, items, timed=config["timed"] is True),
        popularity=catalogue["popularity"],
        by=catalogue["by"],
        tables={
            side: _side_table(path / name, getattr(encoder.schema, side))
            for side, name in SIDES.items()
            if name in manifest["files"]
        },
        golden=golden,
        facts=facts,
        toml=(path / TOML).read_bytes().decode("utf-8"),
    )


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], listed: Mapping[str, Any]) -> None:
    found = {n: {"dtype": str(t.dtype).removeprefix("torch."), "shape": [*t.shape]} for n, t in tensors.items()}
    if found != dict(listed):
        raise StateError(f"{path / WEIGHTS}: its tensors are not those of the manifest; refused")
    for name, value in tensors.items():
        missing = value.isnan() if name in _WITH_GAPS else torch.zeros_like(value, dtype=torch.bool)
        fitted = name.startswith("losses.")  # the outer edges of some lie at infinity
        if not fitted and not bool((torch.isfinite(value) | missing).all()):
            raise StateError(f"{path / WEIGHTS}: '{name}' is not finite; refused")


def _check_facts(path: Path, facts: Mapping[str, Any], tasks: Sequence[str]) -> None:
    for name, kind in _FACTS.items():
        if not isinstance(facts.get(name), kind):
            raise StateError(f"{path}: '{name}' is missing or no {kind.__name__}; refused")
    if [t["name"] for t in facts["tasks"]] != list(tasks):
        raise StateError(f"{path}: its tasks are not those of {CONFIG}; refused")
    Mix.parse(facts["mix"], tasks)


def _check_catalogue(path: Path, found: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
    popularity, by = found["popularity"], found["by"]
    fits = popularity.shape == shape[:1] and by.shape == shape and not popularity.is_floating_point()
    if not fits or bool((popularity < 0).any()) or bool(by.isinf().any()):
        raise StateError(f"{path}: its items do not fit the vocabulary; the bundle is damaged")


def _calibration(path: Path, schema: Schema, tasks: Sequence[str]) -> dict[str, Calibration]:
    found = {t: from_dict(c) for t, c in read_object(path).items()}
    for task in found:
        if task not in tasks or schema.task(task).kind != "binary":
            raise StateError(f"{path}: '{task}' is no binary task of this model; refused")
    return found


def _side_table(path: Path, name: str) -> pl.DataFrame:
    """The raw table of a side, whose ids are in the column ``name``, each once."""
    found = read_table(path)
    if name not in found.columns or found[name].dtype != pl.String or found[name].null_count():
        raise StateError(f"{path}: column '{name}' must hold an id in every row; refused")
    if found[name].n_unique() < found.height:
        raise StateError(f"{path}: column '{name}' holds an id twice; refused")
    return found
