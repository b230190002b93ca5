"""A finished run brought back into memory: its data are split again, and its model holds the weights it kept."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from polytask.config import parse
from polytask.data.batch import Part
from polytask.data.split import split
from polytask.data.table import Dataset, with_schema
from polytask.errors import StateError
from polytask.files import verify_folder
from polytask.nn.design import Design
from polytask.nn.models import make_model
from polytask.run import Run

_CONFIG, _ENVIRONMENT = "config.toml", "environment.json"


def revive(folder: str | Path, data: Dataset | None = None) -> tuple[Run, str]:
    """The run of ``folder`` with its model and parts in memory, and the configuration it is from, as TOML.

    ``data`` are read as the configuration says unless they are given. Data or a configuration that are no longer
    those of the run are a :class:`StateError`.
    """
    folder = Path(folder)
    run, home = Run.load(folder), _home(folder)
    text = (home / _CONFIG).read_text("utf-8")
    config = parse(text, str(home / _CONFIG))
    dataset = with_schema(data or config.load_data(home), run.schema)
    section = config.data.split
    seed = section.seed if home == folder else run.config.seed  # a comparison splits anew for every seed
    parts = split(dataset, section.kind, valid=section.valid, test=section.test, seed=seed)
    run.sources = {name: part for name, part in parts.__dict__.items() if part is not None}
    _check_rows(folder, run.sources)
    model = make_model(parts.train, Design.from_dict(run.design))
    verify_folder(folder / "model")
    try:
        model.load_state_dict(load_file(folder / "model" / "model.safetensors"))
    except (RuntimeError, SafetensorError):
        raise StateError(f"{folder / 'model'} does not fit the run's design; restore it, or train again") from None
    run.model = model
    return run, text


def _check_rows(folder: Path, parts: Mapping[str, Part]) -> None:
    """Refuse parts whose rows are not those that the run's environment.json names."""
    try:
        known = {name: set(prints) for name, prints in _data(folder).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StateError(f"{folder / _ENVIRONMENT} is missing or damaged, so the run's rows cannot be told") from None
    if changed := [name for name, part in parts.items() if part.fingerprint not in known.get(name, ())]:
        raise StateError(
            f"{folder}: the {changed[0]} rows read now are not those of the run; did data or split change?"
        )


def _data(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / _ENVIRONMENT).read_text("utf-8"))["data"]
    return found


def _home(folder: Path) -> Path:
    """Where the run's configuration lies: in its own folder, or in that of its comparison."""
    for place in (folder, *folder.resolve().parents[:2]):
        if (place / _CONFIG).is_file():
            return place
    raise StateError(f"{folder} has no {_CONFIG}: bundle a run of the Python interface with Bundle.save(path, run)")
