"""Save the state of a training at a step, and find the newest state that is whole.

A checkpoint is a folder ``step-NNNNNNNNN`` with the tensors (safetensors), the rest (JSON), and a manifest
written last. A damaged or unfinished one is passed over for the one before it.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from polytask.errors import StateError
from polytask.files import verify_folder, write_folder, write_json

_KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """Training state after ``step`` steps: ``tensors`` by name, ``rest`` as plain values, and the ``identity``.

    The identity says which configuration, data, versions and thread count the state belongs to: with
    another the resumed run would not end where the uninterrupted one does.
    """

    step: int
    tensors: dict[str, Tensor]
    rest: dict[str, Any]
    identity: dict[str, Any]


def save(folder: Path, state: Checkpoint) -> None:
    """Write ``state`` below ``folder``, whole or not at all; older ones go, but for the last before it.

    A tensor that is not finite is a :class:`StateError`, and nothing is written.
    """
    for name, tensor in state.tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise StateError(f"checkpoint at step {state.step}: {name} is not finite; lower the learning rate")

    def fill(temporary: Path) -> None:
        save_file({n: t.detach().contiguous() for n, t in state.tensors.items()}, temporary / "state.safetensors")
        write_json(temporary / "state.json", {"step": state.step, "rest": state.rest, "identity": state.identity})

    write_folder(folder / f"step-{state.step:09d}", fill)
    for old in _found(folder)[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path, identity: dict[str, Any], *, force: bool = False) -> Checkpoint | None:
    """The newest whole checkpoint below ``folder``, or None; damaged ones are passed over.

    One of another ``identity`` is a :class:`StateError` that names what differs, unless ``force``.
    """
    for path in reversed(_found(folder)):
        try:
            verify_folder(path)
        except StateError:
            continue
        content = json.loads((path / "state.json").read_text("utf-8"))
        if not force:
            require_same(path, content["identity"], identity)
        return Checkpoint(content["step"], load_file(path / "state.safetensors"), content["rest"], content["identity"])
    return None


def require_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on from a state whose identity differs, naming the first difference."""
    for key in wanted:
        if found.get(key) != wanted[key]:
            then, now = _difference(found.get(key), wanted[key])
            raise StateError(
                f"{path} was made with {key} {then}, now {now}: it would not continue the same run; "
                "use another --folder, or --force to start from it all the same"
            )


def _difference(found: Any, wanted: Any) -> tuple[str, str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(wanted.keys() | found.keys()):
            if found.get(key) != wanted.get(key):
                then, now = _difference(found.get(key), wanted.get(key))
                return (f"{key}.{then}" if isinstance(wanted.get(key), dict) else f"{key} = {then}"), now
    return _short(found), _short(wanted)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _found(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir()) if folder.is_dir() else []
