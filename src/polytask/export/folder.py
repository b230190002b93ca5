"""Everything that leaves for other programs, as one folder: written whole, and only if it proves right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from torch.export import ExportedProgram

from polytask.bundle import Bundle
from polytask.errors import ConfigError, did_you_mean
from polytask.export.check import Run, check
from polytask.export.inputs import inputs
from polytask.export.onnx_file import require, run_onnx, save_onnx
from polytask.export.program import run_program, save_program, trace
from polytask.export.served import Served
from polytask.export.vectors import save_vectors
from polytask.files import require_replaceable, write_folder, write_json

FACTS, VOCABULARY = "export.json", "vocabulary.parquet"
FORMATS = ("onnx", "pt2", "vectors")
"""What a bundle can be exported as."""


def export(bundle: Bundle, to: str | Path, formats: Sequence[str] = FORMATS) -> dict[str, Any]:
    """Write ``bundle`` to the folder ``to`` in ``formats``, and return what export.json says of it.

    Each program is run on golden and random rows and ranks for users before the folder appears; where it does not say
    what the bundle says, a :class:`StateError`, and nothing is written. So is a folder that holds anything but an
    earlier export. An unknown format, and a model that cannot be traced, are a :class:`ConfigError`.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError("export: " + did_you_mean("format", name, FORMATS))
    if not formats:
        raise ConfigError(f"export: name at least one format of {', '.join(FORMATS)}")
    if "onnx" in formats:
        require()
    path = Path(to)
    require_replaceable(path)
    facts: dict[str, Any] = {}
    write_folder(path, lambda folder: _fill(folder, bundle, formats, facts))
    return facts


def summary(to: str | Path, facts: Mapping[str, Any]) -> list[str]:
    """What was written to ``to``, one line per file, of the facts that :func:`export` returns."""
    lines = []
    for name in (n for n in ("onnx", "pt2") if n in facts):
        file, found = facts[name]["file"], facts[name]["checked"]
        lists = f", {found['identical']} of {found['users']} top-10 lists the same" if found["users"] else ""
        apart = f"at most {found['difference']:.1e} from the model on {found['rows']} rows"
        lines.append(f"{Path(to) / file}: {apart}{lists}")
        if found["identical"] < found["users"]:
            lines[-1] += ", the others but for ties"
    tables = facts.get("vectors", {"files": [], "tasks": []})
    of = ", ".join(tables["tasks"]) or "items alone: no task has a dot head"
    return lines + [f"{Path(to) / file}: {of}" for file in tables["files"]]


def _fill(folder: Path, bundle: Bundle, formats: Sequence[str], facts: dict[str, Any]) -> None:
    facts |= {"format": 1, "bundle": bundle.name, "version": bundle.version, "mix": bundle.mix.text}
    if {"onnx", "pt2"} & set(formats):
        module = Served(bundle).eval()
        program = trace(module)
        kinds = {t: bundle.schema.task(t).kind for t in bundle.tasks}
        facts["inputs"] = [one.to_dict() for one in module.inputs]
        facts["outputs"] = [{"name": t, "kind": k, "dtype": "float32", "shape": ["batch"]} for t, k in kinds.items()]
        vocabulary(bundle).write_parquet(folder / VOCABULARY)
        for name in ("onnx", "pt2"):
            if name in formats:
                file = folder / f"model.{name}"
                run = _written(name, module, program, file, {"polytask.bundle": bundle.version})
                facts[name] = {"file": file.name, "checked": check(file.name, bundle, run).to_dict()}
    if "vectors" in formats:
        facts["vectors"] = save_vectors(bundle, folder)
    write_json(folder / FACTS, facts)


def _written(name: str, module: Served, program: ExportedProgram, file: Path, about: dict[str, str]) -> Run:
    """Write one file, and what answers from it."""
    if name == "onnx":
        save_onnx(module, program, file, about)
        return run_onnx(file)
    save_program(program, file)
    return run_program(file)


def vocabulary(bundle: Bundle) -> pl.DataFrame:
    """The raw values of all inputs that are indices: ``input``, ``value``, ``index`` from 1; others are 0."""
    known = bundle.contents.encoder.vocabularies
    each = [
        pl.DataFrame({"input": [one.name] * len(known[one.column]), "value": known[one.column]}).with_columns(
            index=pl.int_range(1, pl.len() + 1)
        )
        for one in inputs(bundle.schema)
        if one.column in known
    ]
    empty = pl.DataFrame(schema={"input": pl.String, "value": pl.String, "index": pl.Int64})
    return pl.concat([empty, *each])
