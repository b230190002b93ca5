"""Runs a workload: each contender in a process of its own, in alternating rounds; one record per workload."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import machine
from case import Case, Contender, SkippedError, Workload

HERE = Path(__file__).parent
DATA = HERE / ".data"
Record = dict[str, Any]


@dataclass(frozen=True)
class Conditions:
    """How to run: a ``profile`` of sizes, ``rounds`` (None: as the profile has it), ``threads``, and for how long."""

    profile: str = "standard"
    rounds: int | None = None
    threads: int = os.cpu_count() or 1
    device: str = "cpu"
    limit: int = 1800


def run(workload: Workload, conditions: Conditions) -> Record:
    """Measure every contender of ``workload``; the round's number is the seed."""
    size, profile = workload.sizes[conditions.profile], conditions.profile
    folder, rounds = data_of(workload, size), conditions.rounds or workload.rounds[profile]
    contenders = workload.taking_part(profile)
    found: dict[str, Record] = {
        c.name: {"note": c.note, "options": dict(c.options), "rounds": [], "skipped": ""} for c in contenders
    }
    versions: dict[str, str] = {}
    for number in range(rounds):
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            if found[contender.name]["skipped"]:
                continue
            case = Case(folder, size, contender.options, number, conditions.threads, conditions.device)
            versions |= _measure(found[contender.name], contender, case, conditions.limit)
    return {
        "workload": workload.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "conditions": asdict(conditions) | {"rounds": rounds},
        "machine": machine.facts(),
        "versions": versions,
        "size": dict(size),
        "data": json.loads((folder / "facts.json").read_text("utf-8")),
        "contenders": found,
    }


def _measure(record: Record, contender: Contender, case: Case, limit: int) -> dict[str, str]:
    """Add a round to the record of a contender; the versions of what its environment holds."""
    load, started = machine.Load(), time.monotonic()
    answer = in_process(contender.call, case, limit, contender.environment)
    if "skipped" in answer:
        record["skipped"] = answer["skipped"]
        shown = f"skipped: {answer['skipped']}"
    else:
        wall = round(time.monotonic() - started, 1)
        record["rounds"].append(answer["found"] | {"wall": wall, "others": round(load.others(), 2)})
        shown = ", ".join(f"{k} {v:,.4g}" for k, v in record["rounds"][-1].items())
    print(f"  round {case.seed + 1}, {contender.name}: {shown}", flush=True)
    return dict(answer.get("versions", {}))


def data_of(workload: Workload, size: Mapping[str, Any]) -> Path:
    """The folder with the workload's arrays of that size, made if it is not there."""
    key = hashlib.sha256(json.dumps([workload.make, size], sort_keys=True).encode()).hexdigest()[:10]
    folder = DATA / f"{workload.make.split(':')[0].rpartition('.')[2]}-{key}"
    if not (folder / "facts.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        answer = in_process(workload.make, Case(folder, size, {}, 0, os.cpu_count() or 1), 1800)
        if "skipped" in answer:
            raise RuntimeError(f"{workload.make}: {answer['skipped']}")
        (folder / "facts.json").write_text(json.dumps(answer["found"]), "utf-8")
    return folder


def in_process(call: str, case: Case, limit: int, environment: str = "") -> Record:
    """What the function named by ``call`` finds in a process of its own; {"skipped": why} if nothing."""
    own = HERE / environment / "bin" / "python"
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "found.json"
        told = json.dumps({"call": call, "case": asdict(case) | {"folder": str(case.folder)}, "target": str(target)})
        command = [str(own) if own.exists() else sys.executable, str(HERE / "runner.py"), told]
        try:
            done = subprocess.run(
                command,
                env=_environment(case.threads),
                cwd=scratch,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"skipped": f"no answer within {limit} s"}
        if target.exists():
            answer: Record = json.loads(target.read_text("utf-8"))
            return answer
    last = (done.stderr.strip() or "no message").splitlines()[-1]
    return {"skipped": f"failed ({done.returncode}): {last}"}


def _environment(threads: int) -> dict[str, str]:
    counts = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    given = {f"{name}_NUM_THREADS": str(threads) for name in counts} | {"POLARS_MAX_THREADS": str(threads)}
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1", "TQDM_DISABLE": "1"}
    return os.environ | given | quiet | {"PYTHONPATH": path}


def _answer(told: Record) -> Record:
    """In the process of a contender."""
    module, _, name = told["call"].partition(":")
    case = Case(**told["case"] | {"folder": Path(told["case"]["folder"])})
    try:
        return {"found": getattr(import_module(module), name)(case), "versions": machine.versions()}
    except SkippedError as error:
        return {"skipped": str(error)}


if __name__ == "__main__":
    question = json.loads(sys.argv[1])
    Path(question["target"]).write_text(json.dumps(_answer(question)), "utf-8")
