"""``docs/benchmarks.md`` from the history: what must be shown, then a table for each workload."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import history
from case import Aim, Workload

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = Path(__file__).parent / "page.md"
Record = dict[str, Any]


def write(workloads: Mapping[str, Workload]) -> None:
    """Write the page anew from the newest record of each workload."""
    records = history.newest(list(workloads))
    lines = [HEAD.read_text("utf-8").rstrip(), "", *_summary(workloads, records)]
    for name, record in records.items():
        workload = workloads[name]
        lines += ["", f"## {workload.title}", "", workload.text, "", *table(workload, record), "", _conditions(record)]
    PAGE.write_text("\n".join(lines) + "\n", "utf-8")


def _summary(workloads: Mapping[str, Workload], records: Mapping[str, Record]) -> Iterator[str]:
    yield from ("## What is aimed at, and where it stands", "")
    yield from ("| | measured (rounds) | floor | goal | |", "|---|---:|---:|---:|---|")
    for name, workload in workloads.items():
        for aim in workload.aims:
            found = _standing(aim, records[name]) if name in records else None
            measured, state = found or ("", "not measured yet")
            sign = "≤ " if aim.form in ("share", "value") else ""
            bounds = " | ".join(f"{sign}{bound:g}{aim.unit}" for bound in (aim.floor, aim.goal))
            yield f"| {aim.label} | {measured} | {bounds} | {state} |"


def verdicts(workload: Workload, record: Record) -> Iterator[str]:
    """A line for each aim of a workload."""
    for aim in workload.aims:
        measured, state = _standing(aim, record) or ("", "not measured")
        yield re.sub(r"\*", "", f"{aim.label}: {measured} (floor {aim.floor:g}, goal {aim.goal:g}): {state}")


def _standing(aim: Aim, record: Record) -> tuple[str, str] | None:
    """The ratio with its range over rounds, and what that reaches; None if a side is missing."""
    ours, theirs = _best(record, aim.ours, aim), _best(record, aim.against, aim)
    if ours is None or (aim.against and theirs is None):
        return None
    own = _values(record, ours, aim.quantity)
    best = _values(record, theirs, aim.quantity) if theirs else [1.0] * len(own)
    ratio = _ratio(aim, median(own), median(best))
    each = [_ratio(aim, a, b) for a, b in zip(own, best, strict=False)]
    below = aim.form in ("share", "value")
    reached = [(ratio <= bound) if below else (ratio >= bound) for bound in (aim.floor, aim.goal)]
    state = "goal reached" if reached[1] else "floor reached" if reached[0] else "**missed**"
    who = f" by {ours}" if len(aim.ours) > 1 else ""
    measured = f"{ratio:.2f}{aim.unit} ({min(each):.2f} to {max(each):.2f})"
    return measured, "; ".join([state + who, *_learning(aim, record, ours, theirs or "")])


def _best(record: Record, names: Sequence[str], aim: Aim) -> str | None:
    """Of the contenders that were measured the one with the best median."""
    known = [n for n in names if _values(record, n, aim.quantity)]
    sign = 1 if aim.form == "speed" else -1
    return max(known, key=lambda n: sign * median(_values(record, n, aim.quantity)), default=None)


def _ratio(aim: Aim, ours: float, theirs: float) -> float:
    return theirs / ours if aim.form == "time" else ours / theirs


def _learning(aim: Aim, record: Record, ours: str, theirs: str) -> Iterator[str]:
    """Whether as much was learned: no worse than the other by two standard errors of the difference."""
    for quantity, better in aim.equal.items():
        a, b = _values(record, ours, quantity), _values(record, theirs, quantity)
        if a and b:
            seeds = min(len(a), len(b))
            gain = (1 if better == "higher" else -1) * (fmean(a) - fmean(b))
            error = (stdev(a) ** 2 / len(a) + stdev(b) ** 2 / len(b)) ** 0.5 if seeds > 1 else 0.0
            verdict = "not worse" if gain >= -2 * error else "**worse**"
            yield f"{quantity} {fmean(a):.4f} against {fmean(b):.4f}, {seeds} seeds: {verdict}"


def _values(record: Record, contender: str, quantity: str) -> list[float]:
    rounds = record["contenders"].get(contender, {"rounds": []})["rounds"]
    return [r[quantity] for r in rounds if quantity in r]


def table(workload: Workload, record: Record) -> Iterator[str]:
    """A row for each contender: medians with the range over rounds, and what is to be known about it."""
    headings = [c.heading for c in workload.columns]
    yield "| | " + " | ".join(headings) + " | |"
    yield "|---|" + "---:|" * len(headings) + "---|"
    for name, found in record["contenders"].items():
        cells = [_cell([r[c.quantity] for r in found["rounds"] if c.quantity in r], c.form) for c in workload.columns]
        note = found["note"]
        if found["skipped"]:
            note = f"{'stopped' if found['rounds'] else 'not measured'}: {found['skipped']}"
        yield f"| {name} | {' | '.join(cells)} | {note.replace('|', '/')} |"


def _cell(values: list[float], form: str) -> str:
    if not values:
        return "–"
    middle = form.format(median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def _conditions(record: Record) -> str:
    own, where, versions = record["conditions"], record["machine"], record["versions"]
    others = [r["others"] for c in record["contenders"].values() for r in c["rounds"]]
    busy = f"other load {median(others):.2f} cores (at most {max(others):.2f})" if others else "nothing measured"
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"*{record['date'][:10]}, {where['processor']}, {own['threads']} of {where['cores']} cores, {own['profile']} "
        f"sizes, {own['rounds']} alternating rounds, {busy}; Python {where['python']}, {names}.*"
    )
