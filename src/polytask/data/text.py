"""Delimited text to a frame of strings: byte-exact values, and the line each row came from."""

import csv
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.errors import DataError

KEPT = 1000
_EXTENSIONS = {".csv": ",", ".tsv": "\t"}
_SEPARATORS = (",", "\t", ";", "|")


@dataclass(frozen=True, slots=True)
class Reject:
    """One row that was left out: where it stands, the column and value at fault, and why."""

    source: str
    line: int
    column: str
    value: str
    reason: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.source} {self.unit} {self.line}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Raw:
    """A table as it was read: its frame, the 1-based line or row of each row, and the rows of a wrong width."""

    source: str
    frame: pl.DataFrame
    lines: NDArray[np.int64]
    unit: str = "line"
    ragged: tuple[Reject, ...] = ()
    ragged_count: int = 0


def read_text(path: Path, separator: str | None, columns: list[str] | None) -> Raw:
    """Read a CSV or TSV file (also ``.gz``); the separator is guessed from the extension, then the first line."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; is the file complete?") from None
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return parse_text(content, path.name, separator or _EXTENSIONS.get(suffix.lower()), columns)


def parse_text(
    content: bytes, source: str, separator: str | None, columns: list[str] | None = None, quoted: bool = True
) -> Raw:
    """Read UTF-8 ``content``; ``columns`` names the columns of a file without header, else line 1 does.

    Empty lines are skipped. A row with another number of fields than the first line is left out and recorded.
    ``quoted = False`` takes quote characters as part of the value.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise DataError(f"{source} is empty; give a file with a header line and rows")
    separator = separator or _guess(content)
    if len(separator) != 1 or not separator.isascii():
        raise DataError(f"{source}: separator {separator!r} is not one ASCII character; convert the file to CSV")
    if quoted and b'"' in content:
        rows, lines = _split_quoted(_decode(content, source), source, separator)
        return _from_rows(rows, lines, source, separator, columns)
    _decode(content, source)
    return _from_plain(content.replace(b"\r\n", b"\n"), source, separator, columns)


def _guess(content: bytes) -> str:
    line = content.lstrip().split(b"\n", 1)[0].decode("utf-8", "replace")
    return max(_SEPARATORS, key=line.count)


def _decode(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{source} line {line}: byte 0x{content[error.start]:02x} is not UTF-8; convert the file to UTF-8"
        ) from None


def _split_quoted(text: str, source: str, separator: str) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, lines, line = [], [], 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{source} line {line}: {error}; mend the quotes of this row") from None
    return rows, lines


def _from_rows(rows: list[list[str]], lines: list[int], source: str, separator: str, columns: list[str] | None) -> Raw:
    names = _names(rows[0], source, separator, columns)
    start = 0 if columns else 1
    rows, lines = rows[start:], lines[start:]
    good = [i for i, row in enumerate(rows) if len(row) == len(names)]
    ragged = [(lines[i], len(row), separator.join(row)) for i, row in enumerate(rows) if len(row) != len(names)]
    values = zip(*(rows[i] for i in good), strict=True) if good else ([] for _ in names)
    frame = pl.DataFrame([pl.Series(n, list(v), dtype=pl.String) for n, v in zip(names, values, strict=True)])
    rejects = tuple(_ragged(source, names, *found) for found in ragged[:KEPT])
    return Raw(source, frame, np.array(lines, np.int64)[good], "line", rejects, len(ragged))


def _from_plain(content: bytes, source: str, separator: str, columns: list[str] | None) -> Raw:
    """Without quotes a line is a row, so its fields are counted on the bytes before polars reads them."""
    body = np.frombuffer(content if content.endswith(b"\n") else content + b"\n", np.uint8)
    ends = np.flatnonzero(body == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    marks = np.flatnonzero(body == ord(separator))
    widths = np.searchsorted(marks, ends) - np.searchsorted(marks, starts) + 1
    filled = np.flatnonzero(ends > starts)
    first = content[starts[filled[0]] : ends[filled[0]]].decode()
    names = _names(first.split(separator), source, separator, columns)
    rows = filled if columns else filled[1:]
    good = rows[widths[rows] == len(names)]
    bad = rows[widths[rows] != len(names)]
    spans = zip(starts[bad[:KEPT]], ends[bad[:KEPT]], bad[:KEPT], strict=True)
    rejects = tuple(_ragged(source, names, int(n) + 1, int(widths[n]), content[a:b].decode()) for a, b, n in spans)
    if len(good) and len(good) == len(ends) - good[0]:
        content = content[starts[good[0]] :]
    else:
        content = b"\n".join(content[a:b] for a, b in zip(starts[good], ends[good], strict=True))
    return Raw(source, _parse(content, separator, names), good + 1, "line", rejects, len(bad))


def _parse(content: bytes, separator: str, names: list[str]) -> pl.DataFrame:
    if not content:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    return pl.read_csv(
        io.BytesIO(content),
        separator=separator,
        has_header=False,
        new_columns=names,
        infer_schema=False,
        quote_char=None,
    )


def _ragged(source: str, names: list[str], line: int, width: int, text: str) -> Reject:
    return Reject(source, line, "", text[:200], f"{width} fields where {len(names)} are expected; mend the row")


def _names(first: list[str], source: str, separator: str, columns: list[str] | None) -> list[str]:
    """The column names; one column that another separator would split says that the separator is wrong."""
    other = max(_SEPARATORS, key=first[0].count)
    if len(first) == 1 and other in first[0]:
        raise DataError(
            f"{source}: one column {first[0][:80]!r} — the separator looks like {other!r}; "
            f'set separator = "{other.replace(chr(9), chr(92) + "t")}"'
        )
    if columns is not None and len(columns) != len(first):
        raise DataError(f"{source}: columns names {len(columns)} columns, but line 1 has {len(first)} fields")
    names = columns if columns is not None else first
    if repeated := [n for n in names if names.count(n) > 1]:
        raise DataError(f"{source}: column {repeated[0]!r} is named twice; names are unique")
    return names
