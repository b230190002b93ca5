"""The report as Markdown: all but the figures."""

import re
from collections.abc import Callable

from polytask.errors import visible
from polytask.report.document import Document
from polytask.report.findings import by_kind
from polytask.report.tables import Table, cost_table, mark_table, setting_table, verdict_tables
from polytask.report.trade_tables import (
    balancing_tables,
    calibration_tables,
    gate_tables,
    probe_tables,
    seesaw_table,
    tradeoff_tables,
)

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def markdown(document: Document) -> str:
    """``document`` as GitHub-flavored Markdown; names from outside are shown as they are and format nothing."""
    blocks = [f"# {plain(document.title)}", *map(plain, document.headline), "## Who gained, who paid"]
    blocks += [_table(table) for table in (*seesaw_table(document), *verdict_tables(document))]
    blocks += [plain(document.verdict_note)] if document.verdict_note else []
    blocks += ["## Findings", *_findings(document)]
    blocks += _section("Balancing and trade-offs", document.balancing, balancing_tables, tradeoff_tables, document)
    blocks += _section("Conflict between tasks", document.probes.grouping, probe_tables, gate_tables, document)
    blocks.append("## Comparisons")
    for comparison in document.comparisons:
        blocks += [f"### {plain(comparison.title)}", *map(plain, comparison.text)]
    blocks += ["## Cost", _table(cost_table(document)), "## Settings and numbers", _table(setting_table(document))]
    blocks += map(_table, calibration_tables(document))
    blocks += [_table(mark_table(document)), "## How to read this", _items(document.notes)]
    return "\n\n".join(blocks) + "\n"


Tables = Callable[[Document], list[Table]]


def _section(title: str, sentence: str, first: Tables, second: Tables, document: Document) -> list[str]:
    """A heading, a sentence and tables; nothing where there is neither."""
    found = [*([plain(sentence)] if sentence else []), *map(_table, (*first(document), *second(document)))]
    return [f"## {title}", *found] if found else []


def _findings(document: Document) -> list[str]:
    """Findings as a list, the remedies as code."""
    if not document.findings:
        return ["Nothing out of the ordinary was found."]
    items = [(f"{kind.kind}: {text}", command) for kind in by_kind(document.findings) for text, command in kind.items]
    return ["\n".join(f"- {plain(text)}{_command(command)}" for text, command in items)]


def _command(text: str) -> str:
    """A command line as a block of its own in an item; a fence longer than any in it cannot be closed by it."""
    if not text:
        return ""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"\n  {fence}\n  {visible(text)}\n  {fence}"


def plain(text: str) -> str:
    """``text`` with everything escaped that Markdown would take for markup."""
    escaped = re.sub(r"[\\`*_\[\]|~#]", r"\\\g<0>", visible(text))
    return re.sub("[&<>]", lambda found: _ENTITIES[found[0]], escaped)


def _items(texts: tuple[str, ...] | list[str]) -> str:
    return "\n".join(f"- {plain(text)}" for text in texts)


def _table(table: Table) -> str:
    groups = [text.partition(":")[0] for text, span in table.groups for _ in range(span)] or [""] * len(table.columns)
    head = [
        f"{column} ({group.lower()})" if group else column for group, column in zip(groups, table.columns, strict=True)
    ]
    lines = [head, ["---"] * len(head), *table.rows]
    rows = "\n".join("| " + " | ".join("---" if c == "---" else plain(c) for c in line) + " |" for line in lines)
    return f"**{plain(table.caption)}**\n\n{rows}"
