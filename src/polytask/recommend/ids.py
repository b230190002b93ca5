"""The ids of a file of users, one block after the other: exact strings, however long the file."""

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Self, TextIO

import polars as pl

from polytask.errors import DataError, did_you_mean, visible

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_BLOCK = 1 << 16


@dataclass(frozen=True, eq=False)
class Ids:
    """The ``count`` ids in column ``name`` of the file ``path``, or, where there is none, the ``known`` ones."""

    path: Path | None
    name: str
    known: pl.Series
    count: int

    @classmethod
    def of(cls, path: Path | None, name: str, known: pl.Series) -> Self:
        """Read the file once to see that every id is there; an empty one is a :class:`DataError` with its line."""
        ids = cls(path, name, known, 0)
        count = len(known) if path is None else sum(1 for _ in ids._each())
        if not count:
            raise DataError(f"{path} is empty: it has no rows after the header")
        return cls(path, name, known, count)

    def blocks(self, size: int) -> Iterator[list[str]]:
        """All ids in order, ``size`` at a time."""
        each = self._each()
        while block := list(islice(each, size)):
            yield block

    def _each(self) -> Iterator[str]:
        if self.path is None:
            return iter(self.known)
        if not self.path.is_file():
            raise DataError(f"no file {self.path}; check the path (it is taken from the current folder)")
        return self._of_parquet(self.path) if self.path.suffix == ".parquet" else self._of_text(self.path)

    def _of_parquet(self, path: Path) -> Iterator[str]:
        try:
            frame = pl.scan_parquet(path, glob=False)
            kinds = frame.collect_schema()
            self._check_name(path, kinds.names())
            if not (kinds[self.name].is_integer() or kinds[self.name] in (pl.String, pl.Categorical, pl.Enum)):
                raise DataError(f"{path.name}: column '{self.name}' is {kinds[self.name]}; ids are text or integers")
            rows = int(frame.select(pl.len()).collect().item())
            for start in range(0, rows, _BLOCK):
                block = frame.select(pl.col(self.name).cast(pl.String)).slice(start, _BLOCK).collect()[self.name]
                if (empty := block.is_null() | (block == "")).any():
                    self._refuse(path, f"row {start + int(str(empty.arg_max())) + 1}")
                yield from block
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}; write it again") from None

    def _of_text(self, path: Path) -> Iterator[str]:
        packed = path.suffix == ".gz"
        try:
            with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="\n") as stream:
                yield from self._of_lines(path, stream)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: byte 0x{error.object[error.start]:02x} is not UTF-8; convert the file") from None
        except (OSError, EOFError) as error:
            raise DataError(f"cannot read {path}: {error}; is the file complete?") from None

    def _of_lines(self, path: Path, stream: TextIO) -> Iterator[str]:
        suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
        rows = _rows(path, stream, _SEPARATORS.get(suffix.lower(), ","))
        header = next(rows, (1, []))[1]
        self._check_name(path, header)
        at = header.index(self.name)
        for line, row in rows:
            if len(row) != len(header):
                raise DataError(
                    f"{path.name} line {line}: {len(row)} fields where {len(header)} are expected; mend the row"
                )
            if not row[at]:
                self._refuse(path, f"line {line}")
            yield row[at]

    def _check_name(self, path: Path, columns: list[str]) -> None:
        if self.name not in columns:
            raise DataError(f"{path.name}: " + did_you_mean("column", self.name, map(visible, columns)))

    def _refuse(self, path: Path, where: str) -> None:
        raise DataError(f"{path.name} {where}: {self.name} is empty; fill the id or remove the row")


def _rows(path: Path, stream: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of delimited text with the line each begins at; empty lines are skipped.

    Only lines that hold quotes are left to the csv reader: elsewhere a lone carriage return is part of a value.
    """
    numbered = enumerate(stream, start=1)
    for number, line in numbered:
        if '"' in line:
            rest = chain([line], (more for _, more in numbered))
            try:
                yield number, next(csv.reader(rest, delimiter=separator, strict=True))
            except csv.Error as error:
                raise DataError(f"{path.name} line {number}: {error}; mend the quotes of this row") from None
        elif text := line.removesuffix("\n").removesuffix("\r"):
            yield number, text.split(separator)
