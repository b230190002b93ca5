"""Columns as read to columns as the schema means them, and which rows cannot be converted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal, cast

import numpy as np
import polars as pl

from polytask.data.lookup import is_whole
from polytask.data.text import KEPT, Raw, Reject
from polytask.errors import ConfigError, DataError
from polytask.schema import Field, Schema, Side, Task

Role = Literal["id", "category", "bag", "number", "label", "time"]
_TEXT = {"id", "category", "bag"}


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows of one column that fail one check, and the sentence about a failing value."""

    column: str
    mask: pl.Series
    reason: Callable[[str], str]


@dataclass(frozen=True, eq=False)
class Bad:
    """Every problem of a table; a row counts once, under its first problem."""

    problems: tuple[Problem, ...]
    mask: pl.Series
    count: int

    def rows(self, raw: Raw) -> tuple[Reject, ...]:
        """The first 1,000 rejected rows in the order of the file, those of a wrong width among them."""
        found = list(raw.ragged)
        for row in self.mask.arg_true().head(KEPT).to_list():
            problem = next(p for p in self.problems if p.mask[row])
            value = _shown(raw.frame[problem.column][row])
            line = int(raw.lines[row])
            found.append(Reject(raw.source, line, problem.column, value, problem.reason(value), raw.unit))
        return tuple(sorted(found, key=lambda reject: reject.line)[:KEPT])


def convert_interactions(raw: Raw, schema: Schema) -> tuple[pl.DataFrame, Bad]:
    """The columns that the schema needs, in its order, and the rows that must go."""
    _require(raw, schema.columns)
    return _convert(raw, _roles(schema), schema.tasks, whole=True)


def convert_side(raw: Raw | None, schema: Schema, side: Side) -> pl.DataFrame | None:
    """The users or items table: id, fields, then every other column as strings; any bad row is an error."""
    if raw is None:
        return None
    own = [f for f in schema.inputs if f.side == side and f.kind != "history"]
    _require(raw, [f.name for f in own])
    ids = getattr(schema, side)
    roles: dict[str, Role] = {f.name: "id" if f.name == ids else _role(f) for f in own}
    roles |= {c: "category" for c in raw.frame.columns if c not in roles and not raw.frame[c].dtype.is_float()}
    frame, bad = _convert(raw, roles, ())
    if bad.count or raw.ragged_count:
        raise DataError(str(bad.rows(raw)[0]))
    twice = frame[ids].is_duplicated()
    if twice.any():
        row = int((~frame[ids].is_first_distinct()).arg_true()[0])
        where = f"{raw.source} {raw.unit} {raw.lines[row]}"
        raise DataError(f"{where}: {side} {frame[ids][row]!r} is listed twice; keep one row for each {side}")
    floats = [raw.frame[c].cast(pl.String) for c in raw.frame.columns if c not in roles]
    return frame.with_columns(floats)


def placed(schema: Schema, raw: Raw, users: Raw | None, items: Raw | None) -> Schema:
    """The schema with every context field that stands in the users or items table alone moved to that side."""

    def side_of(field: Field) -> Side:
        if field.side == "context" and field.name not in raw.frame.columns:
            for side, table in (("user", users), ("item", items)):
                if table is not None and field.name in table.frame.columns:
                    return cast(Side, side)
        return field.side

    return replace(schema, fields=tuple(replace(f, side=side_of(f)) for f in schema.fields))


def check_sides(raw: Raw, schema: Schema, users: Raw | None, items: Raw | None) -> None:
    """A user's or item's field belongs in that side's table; elsewhere is an error that says how to mend it."""
    for side, table in (("user", users), ("item", items)):
        if table is not None and getattr(schema, side) is None:
            raise ConfigError(f'schema: there is a {side}s table but no {side} column; set {side} = "column"')
        ids = getattr(schema, side)
        for field in (f for f in schema.fields if f.side == side and f.kind != "history" and f.name != ids):
            if table is None or field.name not in table.frame.columns:
                _misplaced(raw, field, table)


def _misplaced(raw: Raw, field: Field, table: Raw | None) -> None:
    side = field.side
    if field.name in raw.frame.columns:
        raise DataError(
            f"schema: field '{field.name}' has side = \"{side}\" but stands in {raw.source}, not in a {side}s table; "
            f'set side = "context" or give {side}s with this column'
        )
    if table is None:
        raise DataError(
            f"schema: field '{field.name}' has side = \"{side}\" but there is no {side}s table; give {side}s"
        )
    _require(table, [field.name])


def _require(raw: Raw, columns: tuple[str, ...] | list[str]) -> None:
    known = raw.frame.columns
    for column in columns:
        if column not in known:
            near = get_close_matches(column, known, n=1, cutoff=0.6)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            shown = ", ".join(_shown(name) if not name.isprintable() else name for name in known)
            if all(name.replace(".", "").isdigit() for name in known):
                hint = " Line 1 looks like data: name the columns with columns = [...]."
            raise DataError(f"schema: no column '{column}' in {raw.source}.{hint} Columns: {shown}")


def _roles(schema: Schema) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    named: list[tuple[str | None, Role]] = [(schema.user, "id"), (schema.item, "id"), (schema.time, "time")]
    named += [(f.name, _role(f)) for f in schema.inputs if f.side == "context"]
    named += [(t.column, "label") for t in schema.tasks]
    named += [(c, "number") for t in schema.tasks for c in (t.by, t.row_weight)]
    for column, role in named:
        if column is None:
            continue
        if (column in roles) and ({roles[column], role} & _TEXT) and roles[column] != role:
            raise ConfigError(
                f"schema: column '{column}' cannot be {roles[column]} and {role} at once; copy the column"
            )
        roles.setdefault(column, role)
    return roles


def _role(field: Field) -> Role:
    return {"number": "number", "categories": "bag"}.get(field.kind, "category")  # type: ignore[return-value]


def _convert(
    raw: Raw, roles: dict[str, Role], tasks: tuple[Task, ...], *, whole: bool = False
) -> tuple[pl.DataFrame, Bad]:
    """Convert the columns of ``roles``; with ``whole`` ids and categories that are whole numbers stay so."""
    columns: list[pl.Series] = []
    problems: list[Problem] = []
    for name, role in roles.items():
        column, found = (_category if role in _TEXT else _number)(raw.frame[name], role, raw.source)
        columns.append(column if whole or role not in _TEXT else column.cast(pl.String))
        problems += found
        problems += [p for t in tasks if t.column == name for p in _out_of_range(column, t)]
    frame = pl.DataFrame(columns)
    problems += [p for t in tasks if t.row_weight for p in _bad_weight(frame, t, t.row_weight)]
    mask = pl.Series("bad", np.zeros(raw.frame.height, bool))
    for problem in problems:
        mask = mask | problem.mask
    return frame, Bad(tuple(problems), mask, int(mask.sum()))


def _category(column: pl.Series, role: Role, source: str) -> tuple[pl.Series, list[Problem]]:
    kind = column.dtype
    if kind.is_float() or kind.is_decimal():
        raise DataError(
            f"{source}: column '{column.name}' is {kind}, so 7 would become '7.0'; make it strings or integers "
            '(in pandas: .astype("Int64"))'
        )
    if kind.is_nested() or kind in (pl.Binary, pl.Object):
        raise DataError(f"{source}: column '{column.name}' is {kind}, not text or integers; convert or drop it")
    text = column
    if role == "bag" or not is_whole(column.dtype):
        text = column.cast(pl.String)
        text = text.set(text == "", None)
    if role != "id":
        return text, []
    empty = Problem(column.name, text.is_null(), lambda _: f"{column.name} is empty; fill the id or remove the row")
    return text, [empty]


def seconds(column: pl.Series, source: str) -> pl.Series:
    """The values of a time column in seconds since 1970, null where there is none."""
    return _number(column, "time", source)[0]


def _number(column: pl.Series, role: Role, source: str) -> tuple[pl.Series, list[Problem]]:
    name = column.name
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        column = column.set(column == "", None)
    elif column.dtype in (pl.Date, pl.Datetime) and role == "time":
        column = column.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    elif not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise DataError(f"{source}: column '{name}' is {column.dtype}, not a number; convert it")
    numbers = column.cast(pl.Float64, strict=False)
    wrong = pl.repeat(False, len(column), eager=True)
    if not column.dtype.is_integer():  # a whole number is finite
        wrong = (column.is_not_null() & numbers.is_null()) | numbers.is_infinite().fill_null(False)
        numbers = numbers.fill_nan(None)
    remedy = "fix the row or leave it empty"
    if role == "time":
        remedy = "times are seconds since 1970: convert dates first"
    problems = [Problem(name, wrong, lambda v: f"{name} {v} is not a finite number; {remedy}")]
    if role == "time":
        problems.append(Problem(name, numbers.is_null(), lambda _: f"{name} is empty; fill the time or remove the row"))
    return numbers, problems


def _out_of_range(column: pl.Series, task: Task) -> Iterator[Problem]:
    """A label outside ``range``, or outside 0..1 where the label is the probability itself."""
    bare = task.kind == "binary" and task.condition is None
    if task.range is None and not bare:
        return
    low, high = task.range or (0.0, 1.0)
    outside = (column < low) | (column > high)
    if bare:
        outside |= (column != 0) & (column != 1)
    outside = outside.fill_null(False)
    where = f"is outside {low:g}..{high:g} (task '{task.name}')"

    def remedy() -> str:
        if bare:
            return f'a binary label is 0 or 1: fix the row or set positive = "{column.name} > 0"'
        return f"fix the row or set range = {_widened(column, low, high)}"

    yield Problem(column.name, outside, lambda v: f"{column.name} {v} {where}; {remedy()}")


def _bad_weight(frame: pl.DataFrame, task: Task, name: str) -> Iterator[Problem]:
    """A row weight below 0, or none where the row has a label: the row would count the wrong way, or not at all."""
    weight = frame[name]
    where = f"(row_weight of task '{task.name}')"
    yield Problem(name, (weight < 0).fill_null(False), lambda v: f"{name} {v} is below 0 {where}; weigh rows 0 or more")
    missing = weight.is_null() if task.column is None else weight.is_null() & frame[task.column].is_not_null()
    yield Problem(name, missing, lambda _: f"{name} is empty {where}; write 0 to leave a row out, 1 to count it once")


def _widened(column: pl.Series, low: float, high: float) -> str:
    ends = np.append(column.filter(column.is_finite()).to_numpy(), [low, high])
    return f"[{ends.min():g}, {ends.max():g}]"


def _shown(value: object) -> str:
    """A value as it may stand in a message: at most 60 characters, control characters escaped."""
    text = "" if value is None else str(value)[:60]
    return text if text.isprintable() and text == text.strip() else repr(text)
