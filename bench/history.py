"""What was measured when: one JSON file per workload and run, from which the page is made."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "history"
Record = dict[str, Any]


def keep(record: Record) -> Path:
    """Write a record beside the earlier ones."""
    FOLDER.mkdir(exist_ok=True)
    stamp = "".join(c for c in record["date"].split("+")[0] if c.isalnum())
    path = FOLDER / f"{record['workload']}-{stamp}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return path


def newest(workloads: Sequence[str]) -> dict[str, Record]:
    """The newest record of each of ``workloads`` that has one."""
    records = [json.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.json")]
    ordered = sorted(records, key=lambda r: str(r["date"]))
    found = {r["workload"]: r for r in ordered}
    return {name: found[name] for name in workloads if name in found}
