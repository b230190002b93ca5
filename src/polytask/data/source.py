"""Whatever holds a table (text file, Parquet, polars or pandas frame) to one :class:`Raw` table."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from polytask.data.text import Raw, read_text
from polytask.errors import DataError

Source = Any
"""A path, a polars frame or a pandas frame; pandas is recognized by its methods, never imported."""


def open_table(source: Source, role: str, separator: str | None = None, columns: list[str] | None = None) -> Raw:
    """Read ``source``; ``role`` names a table that is not a file in messages (interactions, users, items)."""
    if isinstance(source, str | Path):
        return _open_path(Path(source), separator, columns)
    if separator is not None or columns is not None:
        raise DataError(f"{role}: separator and columns are for text files; rename the columns of the frame instead")
    if isinstance(source, pl.LazyFrame):
        source = source.collect()
    if isinstance(source, pl.DataFrame):
        return _raw(role, source)
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return _raw(role, _from_pandas(source, role))
    raise DataError(f"{role}: {type(source).__name__} is not a table; give a path, a polars frame or a pandas frame")


def _open_path(path: Path, separator: str | None, columns: list[str] | None) -> Raw:
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise DataError(f"folder {path} holds no *.parquet file; give a file, or a folder of Parquet")
        return _raw(path.name, _read_parquet(path, files))
    if not path.is_file():
        raise DataError(f"no file {path}; check the path (it is taken from the current folder)")
    if path.suffix == ".parquet":
        return _raw(path.name, _read_parquet(path, [path]))
    return read_text(path, separator, columns)


def _read_parquet(path: Path, files: list[Path]) -> pl.DataFrame:
    try:
        return pl.concat([pl.read_parquet(file, glob=False) for file in files], how="vertical_relaxed")
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot read {path} as Parquet: {reason}; write it again, with one schema") from None


def _raw(source: str, frame: pl.DataFrame) -> Raw:
    if not frame.width:
        raise DataError(f"{source} is empty: it has no columns")
    return Raw(source, frame, np.arange(1, frame.height + 1, dtype=np.int64), "row")


def _from_pandas(frame: Any, role: str) -> pl.DataFrame:
    names = [str(name) for name in frame.columns]
    if repeated := [n for n in names if names.count(n) > 1]:
        raise DataError(f"{role}: column {repeated[0]!r} is named twice; names are unique")
    return pl.DataFrame([_pandas_column(name, frame.iloc[:, k], role) for k, name in enumerate(names)])


def _pandas_column(name: str, column: Any, role: str) -> pl.Series:
    """Convert without pyarrow: plain numbers as an array, all else value by value so that strings stay exact."""
    kind = getattr(column.dtype, "kind", "O")
    if isinstance(column.dtype, np.dtype) and kind in "iufb":
        return pl.Series(name, column.to_numpy())
    if kind == "M":
        return pl.Series(name, column.to_numpy(dtype="datetime64[us]"))
    values = [None if missing else v for v, missing in zip(column.tolist(), column.isna().tolist(), strict=True)]
    try:
        return pl.Series(name, values, strict=True)
    except (TypeError, pl.exceptions.PolarsError):
        raise DataError(f"{role}: column {name!r} mixes types; make it one type, as in .astype(str)") from None
    except UnicodeEncodeError:
        raise DataError(f"{role}: column {name!r} holds a lone surrogate, which is no character; mend it") from None
