"""The report on a comparison: one self-contained HTML page, and the same as Markdown and JSON."""

from collections.abc import Sequence
from pathlib import Path

from polytask.files import write_json, write_text
from polytask.report.document import Document, document
from polytask.report.html import html
from polytask.report.markdown import markdown
from polytask.run import Run

__all__ = ["Document", "document", "report"]

TITLE = "Joint training against training alone"


def report(runs: Sequence[Run], folder: str | Path, *, title: str = TITLE, margin: float | None = None) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.json`` on ``runs`` to ``folder``; the path of the page.

    ``margin`` is the share of the single-task value that counts as equivalent (None: the custom of each metric, or
    1 %).
    """
    folder, found = Path(folder), document(runs, title=title, margin=margin)
    write_json(folder / "report.json", found.to_dict())
    write_text(folder / "report.md", markdown(found))
    write_text(folder / "report.html", html(found))
    return folder / "report.html"
