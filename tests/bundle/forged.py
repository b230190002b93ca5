"""Bundles that were tampered with: by chance, or by somebody who knows how to write a manifest."""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

Change = Callable[[Path], object]


def copied(folder: Path, to: Path) -> Path:
    """A copy of a bundle, over an earlier one."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


def forge(folder: Path, change: Change) -> Path:
    """Let ``change`` alter the files of ``folder``, and write a manifest that vouches for what is there then."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    change(folder)
    with suppress(SafetensorError):
        found = load_file(folder / "model.safetensors")
        manifest["tensors"] = {
            n: {"dtype": str(t.dtype).removeprefix("torch."), "shape": [*t.shape]} for n, t in found.items()
        }
    manifest["files"] = {
        f.name: {"size": f.stat().st_size, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()}
        for f in sorted(folder.iterdir())
        if f.name != "manifest.json" and f.is_file()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


def manifest(change: Callable[[dict[str, Any]], object]) -> Change:
    """Alter the manifest alone."""
    return json_file("manifest.json", change)


def json_file(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Alter what a JSON file says."""

    def run(folder: Path) -> None:
        value = json.loads((folder / name).read_text("utf-8"))
        change(value)
        (folder / name).write_text(json.dumps(value), "utf-8")

    return run


def content(name: str, value: bytes) -> Change:
    """Replace a file."""
    return lambda folder: (folder / name).write_bytes(value)


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Alter the tensors of a file."""

    def run(folder: Path) -> None:
        found = {n: t.clone() for n, t in load_file(folder / name).items()}
        change(found)
        save_file(found, folder / name)

    return run


def table(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Change:
    """Alter a table."""
    return lambda folder: change(pl.read_parquet(folder / name)).write_parquet(folder / name)
