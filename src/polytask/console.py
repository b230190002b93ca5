"""What the command line shows: progress bars with time left, and tables."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from polytask.compare import Progress as Tell

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def progress(title: str) -> Iterator[Tell]:
    """Bars on standard error, one per stack; yields the function that moves them."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=err) as bars:
        known: dict[str, TaskID] = {}

        def tell(name: str, done: int, total: int) -> None:
            if name not in known:
                known[name] = bars.add_task(f"{title} {len(known) + 1}", total=total)
            bars.update(known[name], completed=done, total=total)

        yield tell


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; text is shown as it is, never read as markup."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        shown.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(printable(cell) for cell in row))
    (out if out.is_terminal else Console(file=sys.stdout, width=160, highlight=False)).print(shown)


def printable(value: Any) -> str:
    """``value`` as text without control characters or markup, so that hostile ids cannot steer the terminal."""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    clean = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
    return clean.replace("[", "\\[")
