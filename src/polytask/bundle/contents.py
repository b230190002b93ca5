"""All that a bundle's folder holds, in memory; written as one folder, and read back only if it proves intact."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from polytask.bundle.card import card
from polytask.bundle.encoding import read_encoder, write_encoder
from polytask.bundle.restore import restore
from polytask.bundle.seen import Seen
from polytask.calibration import Calibration, from_dict
from polytask.data.encode import Encoder
from polytask.errors import PolytaskError, StateError
from polytask.files import MANIFEST, verify_folder, write_folder, write_json, write_text
from polytask.nn.design import Design
from polytask.nn.models import Model
from polytask.schema import Schema

FORMAT = 1
"""The version of the folder's form; a later one is refused."""
WEIGHTS, CONFIG, SCHEMA, FACTS, CATALOGUE = (
    "model.safetensors", "config.json", "schema.json", "facts.json", "catalogue.safetensors"
)  # fmt: skip
GOLDEN, CALIBRATION, TOML, CARD = "golden.parquet", "calibration.json", "config.toml", "README.md"
SIDES = {"user": "users.parquet", "item": "items.parquet"}
_EXACT = 1e-4  # relative: between two kinds of processor sums differ in their last digits


@dataclass(frozen=True, eq=False)
class Contents:
    """A model and what it needs to answer for raw ids.

    ``tasks`` were trained. ``popularity`` [I + 1] counts the training rows of every item; ``by`` [I + 1, T] is a
    typical second column of every item. ``tables`` are the raw users and items. ``golden`` are raw rows with what the
    model says of them. ``facts`` are for people to read.
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


def write(path: Path, contents: Contents) -> None:
    """Write ``contents`` to the folder ``path``, whole or not at all."""
    write_folder(path, lambda folder: _fill(folder, contents))


def read(path: Path) -> tuple[Contents, str]:
    """Read a bundle, and its version: 16 hexadecimal digits that two different bundles do not share.

    Every file is compared with the manifest, every tensor with its shape and for finiteness; anything amiss is a
    :class:`StateError` that says what.
    """
    if not (path / MANIFEST).is_file():
        raise StateError(f"{path} is no bundle: it has no {MANIFEST}; make one with 'polytask bundle RUN'")
    manifest = verify_folder(path)
    form = manifest.get("format")
    if form != FORMAT:
        raise StateError(f"{path} is a bundle of format {form!r}, this version reads {FORMAT}; use a newer polytask")
    try:
        found = _read(path, manifest)
    except PolytaskError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
        pl.exceptions.PolarsError,
    ) as error:
        raise StateError(f"{path} holds what no bundle holds: {type(error).__name__} {error}".splitlines()[0]) from None
    return found, sha256((path / MANIFEST).read_bytes()).hexdigest()[:16]


def check_golden(path: Path, golden: pl.DataFrame, score: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Refuse a bundle whose model does not say of its ``golden`` rows what it said when it was saved."""
    tasks = [c for c in golden.columns if c.startswith("value/")]
    now = score(golden.drop(tasks))
    for name in tasks:
        then, found = golden[name].to_numpy(), now[name.removeprefix("value/")].to_numpy()
        if not np.allclose(then, found, rtol=_EXACT, atol=_EXACT, equal_nan=True):
            row = int(np.nanargmax(np.abs(then - found)))
            raise StateError(
                f"{path}: the model does not give its golden answers (row {row}, {name.removeprefix('value/')}: "
                f"{found[row]:.6g}, stored {then[row]:.6g}); refused"
            )


def _fill(folder: Path, contents: Contents) -> dict[str, Any]:
    tensors = {n: t.detach().cpu().contiguous() for n, t in contents.model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    save_file({"popularity": contents.popularity, "by": contents.by}, folder / CATALOGUE)
    write_encoder(folder, contents.encoder)
    contents.seen.write(folder)
    for side, table in contents.tables.items():
        table.write_parquet(folder / SIDES[side])
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


def _read(path: Path, manifest: Mapping[str, Any]) -> Contents:
    config, facts = _json(path / CONFIG), _json(path / FACTS)
    encoder = read_encoder(path, Schema.from_dict(_json(path / SCHEMA)))
    tensors = load_file(path / WEIGHTS)
    _check_tensors(path, tensors, manifest["tensors"])
    tasks = tuple(encoder.schema.task(t).name for t in config["tasks"])
    users, items = (0 if side is None else len(side) - 1 for side in (encoder.users, encoder.items))
    catalogue = load_file(path / CATALOGUE)
    if [*catalogue["popularity"].shape] != [items + 1] or len(catalogue["by"]) != items + 1:
        raise StateError(f"{path / CATALOGUE}: its items do not fit the vocabulary; the bundle is damaged")
    return Contents(
        model=restore(encoder, Design.from_dict(config["design"]), tensors),
        design=config["design"],
        tasks=tasks,
        encoder=encoder,
        calibration={t: from_dict(c) for t, c in _json(path / CALIBRATION).items()},
        seen=Seen.read(path, users, items, timed=bool(config["timed"])),
        popularity=catalogue["popularity"],
        by=catalogue["by"],
        tables={side: pl.read_parquet(path / name) for side, name in SIDES.items() if (path / name).is_file()},
        golden=pl.read_parquet(path / GOLDEN),
        facts=facts,
        toml=(path / TOML).read_text("utf-8"),
    )


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], listed: Mapping[str, Any]) -> None:
    found = {n: {"dtype": str(t.dtype).removeprefix("torch."), "shape": [*t.shape]} for n, t in tensors.items()}
    if found != dict(listed):
        raise StateError(f"{path / WEIGHTS}: its tensors are not those of the manifest; refused")
    for name, value in tensors.items():
        if value.is_floating_point() and not name.startswith("losses.") and not bool(torch.isfinite(value).all()):
            raise StateError(f"{path / WEIGHTS}: '{name}' is not finite; refused")


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
