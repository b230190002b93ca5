"""What a data set holds, and what in it will hurt: counts and warnings, before any training."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from polytask.data.hazards import hazards
from polytask.data.labels import Label, label_of
from polytask.data.table import Dataset


@dataclass(frozen=True)
class Column:
    """One column that the schema reads: its table, what it is for, its missing and distinct values."""

    table: str
    name: str
    role: str
    missing: int
    distinct: int

    def __str__(self) -> str:
        return f"column {self.name} ({self.table}, {self.role}): {self.distinct:,} distinct, {self.missing:,} missing"


@dataclass(frozen=True)
class Findings:
    """The result of :func:`check`: counts, columns, labels, the first rejected rows, and warnings.

    ``users``, ``items`` and ``density`` are None where the schema names no such column.
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
        return [*text, *map(str, self.columns), *map(str, self.labels), *(f"warning: {w}" for w in self.warnings)]


def check(dataset: Dataset) -> Findings:
    """Count what ``dataset`` holds and warn of what will hurt; changes nothing."""
    schema, rows, rejects = dataset.schema, dataset.interactions, dataset.rejects
    users, items = (None if c is None else rows[c].n_unique() for c in (schema.user, schema.item))
    pair = [c for c in (schema.user, schema.item) if c is not None]
    labels = tuple(label_of(rows, task) for task in schema.tasks)
    return Findings(
        name=dataset.name,
        read=rejects.read,
        accepted=rejects.accepted,
        rejected=rejects.count,
        rejects=tuple(str(reject) for reject in rejects.rows[:5]),
        columns=tuple(_columns(dataset)),
        users=users,
        items=items,
        rows=rows.height,
        density=rows.height / (users * items) if users and items else None,
        duplicate_rows=rows.height - rows.n_unique(),
        duplicate_pairs=rows.height - rows.n_unique(pair) if len(pair) == 2 else 0,
        labels=labels,
        warnings=tuple(hazards(dataset, labels)),
    )


def _columns(dataset: Dataset) -> Iterator[Column]:
    schema = dataset.schema
    roles: dict[str | None, str] = {t.column: f"label of {t.name}" for t in schema.tasks} | {schema.time: "time"}
    roles |= {f.name: str(f.kind) for f in schema.fields}
    roles |= {schema.user: "user", schema.item: "item"}
    tables = {"interactions": dataset.interactions, "users": dataset.users, "items": dataset.items}
    for table, frame in tables.items():
        for column in frame.get_columns() if frame is not None else ():
            if column.name in roles:
                distinct = column.drop_nulls().n_unique()
                yield Column(table, column.name, roles[column.name], column.null_count(), distinct)
