"""The report as Markdown: all but the figures."""

import re

from polytask.errors import visible
from polytask.report.document import Document
from polytask.report.tables import Table, cost_table, mark_table, setting_table, verdict_tables

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def markdown(document: Document) -> str:
    """``document`` as GitHub-flavored Markdown; names from outside are shown as they are and format nothing."""
    blocks = [f"# {plain(document.title)}", *map(plain, document.headline), "## Who gained, who paid"]
    blocks += [_table(table) for table in verdict_tables(document)]
    blocks += [plain(document.verdict_note)] if document.verdict_note else []
    blocks += ["## Findings", _items([f.text for f in document.findings] or ["Nothing out of the ordinary was found."])]
    blocks.append("## Comparisons")
    for comparison in document.comparisons:
        blocks += [f"### {plain(comparison.title)}", *map(plain, comparison.text)]
    blocks += ["## Cost", _table(cost_table(document)), "## Settings and numbers", _table(setting_table(document))]
    blocks += [_table(mark_table(document)), "## How to read this", _items(document.notes)]
    return "\n\n".join(blocks) + "\n"


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
