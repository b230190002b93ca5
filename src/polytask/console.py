"""What the command line shows: progress bars with time left, and tables."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from polytask.errors import visible

Tell = Callable[[str, int, int], None]
"""Told the name of what goes on, the steps done and the steps in all."""

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def progress(title: str) -> Iterator[Tell]:
    """Bars on standard error if it is a terminal, one per stack; yields the function that moves them."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=err, disable=not err.is_terminal) as bars:
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
    return escape(visible(text))
