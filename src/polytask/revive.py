"""A finished run brought back into memory: its data are split again, and its model holds the weights it kept."""

import json
from pathlib import Path

from safetensors.torch import load_file

from polytask.config import parse
from polytask.data.split import split
from polytask.data.table import Dataset, with_schema
from polytask.errors import StateError
from polytask.files import verify_folder
from polytask.nn.design import Design
from polytask.nn.models import make_model
from polytask.run import Run

_CONFIG = "config.toml"


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
    known = json.loads((folder / "environment.json").read_text("utf-8"))["data"]
    if changed := [name for name, part in run.sources.items() if part.fingerprint not in known.get(name, ())]:
        raise StateError(
            f"{folder}: the {changed[0]} rows read now are not those of the run; did data or split change?"
        )
    model = make_model(parts.train, Design.from_dict(run.design))
    verify_folder(folder / "model")
    model.load_state_dict(load_file(folder / "model" / "model.safetensors"))
    run.model = model
    return run, text


def _home(folder: Path) -> Path:
    """Where the run's configuration lies: in its own folder, or in that of its comparison."""
    for place in (folder, *folder.resolve().parents[:2]):
        if (place / _CONFIG).is_file():
            return place
    raise StateError(f"{folder} has no {_CONFIG}: bundle a run of the Python interface with Bundle.save(path, run)")
