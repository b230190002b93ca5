"""What a data set holds, and what in it will hurt: counts and warnings, before any training."""

from dataclasses import asdict, dataclass
from typing import Any

from polytask.data.bias import Popularity, popularity, time_travel
from polytask.data.columns import Column, columns
from polytask.data.hazards import copies, hazards
from polytask.data.labels import Label, Together, label_hazards, label_of, together
from polytask.data.leaks import Leak, leaks
from polytask.data.table import Dataset


@dataclass(frozen=True)
class Findings:
    """The result of :func:`check`: counts, columns, labels alone and together, leaks, rejected rows, and warnings.

    ``users``, ``items``, ``density``, ``popularity`` and ``time_travel`` are None where the schema names no such
    column. ``time_travel`` is the share of the test rows of a random split for whose user train holds later rows.
    """

    name: str
    read: int
    accepted: int
    rejected: int
    rejects: tuple[str, ...]
    columns: tuple[Column, ...]
    users: int | None
    items: int | None
    rows: int
    density: float | None
    duplicate_rows: int
    duplicate_pairs: int
    labels: tuple[Label, ...]
    together: Together
    popularity: Popularity | None
    time_travel: float | None
    leaks: tuple[Leak, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for strict JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The findings as text, one fact a line, warnings last."""
        text = [f"{self.name}: {self.read:,} rows read = {self.accepted:,} accepted + {self.rejected:,} rejected"]
        text += [f"rejected: {reject}" for reject in self.rejects]
        if self.density is not None:
            text.append(f"{self.users:,} users, {self.items:,} items, density {100 * self.density:.3g} %")
        text.append(
            f"{self.duplicate_rows:,} exact duplicate rows, {self.duplicate_pairs:,} repeated (user, item) pairs"
        )
        text += [*map(str, self.columns), *map(str, self.labels), *self.together.lines()]
        if self.popularity is not None:
            text.append(str(self.popularity))
        if self.time_travel is not None:
            text.append(
                f"time: in a random split {100 * self.time_travel:.3g} % of the test rows have later rows of their "
                "user in train; to predict what comes next, split by temporal or leave_last"
            )
        return [*text, *(f"warning: {w}" for w in self.warnings)]


def check(dataset: Dataset) -> Findings:
    """Count what ``dataset`` holds and warn of what will hurt; changes nothing."""
    dataset = dataset.as_text()
    schema, rows, rejects = dataset.schema, dataset.interactions, dataset.rejects
    users, items = (None if c is None else rows[c].n_unique() for c in (schema.user, schema.item))
    pair = [c for c in dict.fromkeys((schema.user, schema.item)) if c is not None]
    labels = tuple(label_of(rows, task) for task in schema.tasks)
    both, spread, leaking, repeated = together(rows, schema.tasks), popularity(dataset), leaks(dataset), copies(rows)
    warnings = (
        *label_hazards(rows, schema, labels, both),
        *map(str, leaking),
        *hazards(dataset, repeated, spread),
    )
    return Findings(
        name=dataset.name,
        read=rejects.read,
        accepted=rejects.accepted,
        rejected=rejects.count,
        rejects=tuple(str(reject) for reject in rejects.rows[:5]),
        columns=tuple(columns(dataset)),
        users=users,
        items=items,
        rows=rows.height,
        density=rows.height / (users * items) if users and items else None,
        duplicate_rows=repeated,
        duplicate_pairs=copies(rows.select(pair)) if len(pair) == 2 else 0,
        labels=labels,
        together=both,
        popularity=spread,
        time_travel=time_travel(dataset),
        leaks=leaking,
        warnings=warnings,
    )
