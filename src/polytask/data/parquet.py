"""The rows of one Parquet file, or of a folder of them, by their number, without reading the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from polytask.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Parquet:
    """Rows in the order of the ``files``, whose names sort; file n holds the rows ``ends[n - 1]`` to ``ends[n]``."""

    name: str
    files: tuple[Path, ...]
    ends: np.ndarray

    @classmethod
    def of(cls, path: str | Path) -> "Parquet":
        """The file at ``path``, or all ``*.parquet`` in the folder ``path``."""
        path = Path(path)
        files = tuple(sorted(path.glob("*.parquet"))) if path.is_dir() else (path,)
        if not files or not files[0].is_file():
            raise DataError(f"no Parquet file or folder of them at {path}; check the path")
        if files[0].suffix != ".parquet":
            raise DataError(f"{path.name} cannot be streamed: only Parquet can; convert it with polars' sink_parquet")
        heights = _read(path, lambda: [pl.scan_parquet(f, glob=False).select(pl.len()).collect().item() for f in files])
        return cls(path.name, files, np.cumsum(heights))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def head(self, rows: int) -> pl.DataFrame:
        """The first ``rows`` rows of the first file, with all columns."""
        return _read(self.files[0], lambda: pl.read_parquet(self.files[0], glob=False, n_rows=rows))

    def read(self, first: int, last: int, columns: Sequence[str], every: int = 1) -> pl.DataFrame:
        """The rows from ``first`` to one before ``last``, or of these every ``every``-th."""
        found = []
        start, end = np.searchsorted(self.ends, [first, last - 1], side="right")
        for number in range(start, end + 1):
            start = int(self.ends[number - 1]) if number else 0
            begin, end = max(first, start), min(last, int(self.ends[number]))
            scan = pl.scan_parquet(self.files[number], glob=False).select(columns)
            found.append(scan.slice(begin - start, end - begin))
        whole = found[0] if len(found) == 1 else pl.concat(found, how="vertical_relaxed")
        return _read(self.files[0].parent, (whole if every == 1 else whole.gather_every(every)).collect)

    def fingerprint(self) -> str:
        """SHA-256 over the footers of the files, which hold the number, size and extremes of all column chunks."""
        digest = sha256()
        for file in self.files:
            with file.open("rb") as opened:
                opened.seek(-8, 2)
                length = int.from_bytes(opened.read(4), "little") + 8
                opened.seek(-length, 2)
                digest.update(opened.read())
        return digest.hexdigest()


def _read(path: Path, call: Callable[[], T]) -> T:
    try:
        return call()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason: Any = str(error).splitlines()[0]
        raise DataError(f"cannot read {path} as Parquet: {reason}; write it again, with one schema") from None
