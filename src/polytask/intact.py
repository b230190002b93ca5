"""Files of a bundle read with nothing taken on trust: what a stranger may have put there is told in one line."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from polytask.errors import PolytaskError, StateError, visible

_ROWS = 1 << 20  # rows a table may hold whatever its size
_RATIO = 64  # rows per byte: distinct ids take more than a bit each
_SHOWN = 300  # letters of a library's own message


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Let whatever goes wrong inside end as a :class:`StateError` of one line.

    Every exception counts: what the libraries that read the files raise for a forged one has no common base.
    """
    where = visible(str(path))
    try:
        yield
    except PolytaskError as error:
        told = visible(str(error))
        raise StateError(told if where in told else f"{where}: {told[:_SHOWN]}; refused") from None
    except (Exception, pl.exceptions.PanicException) as error:
        told = visible(" ".join(str(error).split()))[:_SHOWN]
        raise StateError(f"{where} holds what no bundle holds ({type(error).__name__}: {told}); refused") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; NaN, infinity and any other value than an object are a :class:`StateError`."""
    try:
        found = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path} is no JSON a bundle holds: {error}; refused") from None
    if not isinstance(found, dict):
        raise StateError(f"{path} is no JSON object; refused")
    return found


def read_table(path: Path) -> pl.DataFrame:
    """The Parquet table in ``path``; one of far more rows than its bytes can tell apart is a :class:`StateError`.

    The file is opened here, as polars would take brackets and stars in a folder's name for a pattern.
    """
    with path.open("rb") as stream:
        rows = pl.scan_parquet(stream).select(pl.len()).collect().item()
        if rows > max(_ROWS, _RATIO * path.stat().st_size):
            raise StateError(f"{path} says that it holds {rows:,} rows, which its size cannot be; refused")
        stream.seek(0)
        return pl.read_parquet(stream)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    if (value := float(text)) in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is beyond all numbers")
    return value
