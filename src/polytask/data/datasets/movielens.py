"""MovieLens 100K, 1M and latest-small: watched or not (ranking) and the rating (regression).

F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.
"""

import gzip
import hashlib
import zlib
from dataclasses import replace
from pathlib import Path

import polars as pl

from polytask.data.datasets.archive import Archive
from polytask.data.datasets.download import Remote, locate
from polytask.data.ratings import ratings_schema
from polytask.data.table import Dataset, build
from polytask.data.text import Raw, parse_text
from polytask.errors import DataError

_SITE = "https://files.grouplens.org/datasets/movielens"
_RATING = ["user_id", "item_id", "rating", "timestamp"]
_CONDITION = (
    "MovieLens data belong to GroupLens, University of Minnesota: for research, not for commercial use without their "
    "permission, to be cited in publications, and {share}. See the README inside the archive."
)
_CLOSED = _CONDITION.format(share="not to be passed on")
_100K = Remote(
    "ml-100k",
    f"{_SITE}/ml-100k.zip",
    _CLOSED,
    4_924_029,
    "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
)
_1M = Remote(
    "ml-1m",
    f"{_SITE}/ml-1m.zip",
    _CLOSED,
    5_917_549,
    "sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
)
_SMALL = Remote(
    "ml-latest-small",
    f"{_SITE}/ml-latest-small.zip",
    _CONDITION.format(share="to be passed on only under the same conditions"),
    978_202,
    "sha256:696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    final=False,
)
_U_DATA = "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"
_RATINGS_DAT = "77a7c4b150f588c23bb9e1f068aa996c0b413695"
_1M_ROWS = 1_000_209


def movielens_100k(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """943 users, 1,682 movies, 100,000 ratings 1..5 in the order of ``u.data``, whose SHA-256 is checked."""
    archive = locate(_100K, ("u.data",), folder, download)
    content = archive.read("u.data")
    if hashlib.sha256(content).hexdigest() != _U_DATA:
        raise _not_official(archive, "u.data", content, 100_000, _100K)
    users = _users(_table(archive, "u.user", "|", ["user_id", "age", "gender", "occupation", "zip"]))
    genres = [line.split("|")[0] for line in _latin(archive, "u.genre").decode().splitlines() if line]
    names = ["item_id", "title", "date", "video_date", "url", *genres]
    items = _table(archive, "u.item", "|", names)
    return build(
        parse_text(content, "u.data", "\t", _RATING),
        ratings_schema(),
        users=users,
        items=_movies(items, genres),
        name="movielens-100k",
    )


def movielens_1m(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """6,040 users, 3,883 movies, 1,000,209 ratings 1..5.

    A copy whose ratings come as ``ratings_no_timestamp.csv.gz`` is sorted and has no times, so its schema has none.
    """
    plain = "ratings_no_timestamp.csv.gz"
    archive = locate(_1M, ("ratings.dat", plain), folder, download)
    timed = archive.has("ratings.dat")
    ratings = _ratings_dat(archive) if timed else _ratings_csv(archive, plain)
    return build(
        ratings,
        ratings_schema(time=timed),
        users=_users(_table(archive, "users.dat", "::", ["user_id", "gender", "age", "occupation", "zip"])),
        items=_movies(_table(archive, "movies.dat", "::", ["item_id", "title", "genres"])),
        name="movielens-1m",
    )


def movielens_latest_small(folder: str | Path | None = None, download: bool = True) -> Dataset:
    """About 610 users, 9,742 movies, 100,836 ratings 0.5..5; there is no users file, and the edition may change."""
    archive = locate(_SMALL, ("ratings.csv",), folder, download)
    names = {"userId": "user_id", "movieId": "item_id"}
    ratings, movies = (_renamed(parse_text(archive.read(f), f, ","), names) for f in ("ratings.csv", "movies.csv"))
    schema = ratings_schema(lowest=0.5)
    return build(ratings, schema, users=None, items=_movies(movies), name="movielens-latest-small")


def _ratings_dat(archive: Archive) -> Raw:
    content = archive.read("ratings.dat")
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if blob != _RATINGS_DAT:
        raise _not_official(archive, "ratings.dat", content, _1M_ROWS, _1M)
    return _table(archive, "ratings.dat", "::", _RATING)


def _ratings_csv(archive: Archive, name: str) -> Raw:
    try:
        content = gzip.decompress(archive.read(name))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot unpack {name} in {archive.path}: {error}; copy it again") from None
    ratings = _renamed(parse_text(content, name, ","), {"movie_id": "item_id"})
    if ratings.frame.height != _1M_ROWS:
        raise DataError(f"{name} in {archive.path} has {ratings.frame.height:,} rows, not {_1M_ROWS:,}; copy it again")
    return ratings


def _table(archive: Archive, name: str, separator: str, columns: list[str]) -> Raw:
    """A file without header in ISO-8859-1; ``::`` becomes a tab, which none of the files holds."""
    content = _latin(archive, name)
    if separator == "::":
        content, separator = content.replace(b"::", b"\t"), "\t"
    return parse_text(content, name, separator, columns, quoted=False)


def _latin(archive: Archive, name: str) -> bytes:
    return archive.read(name).decode("iso-8859-1").encode()


def _renamed(raw: Raw, names: dict[str, str]) -> Raw:
    return Raw(raw.source, raw.frame.rename(names, strict=False), raw.lines, raw.unit, raw.ragged, raw.ragged_count)


def _users(raw: Raw) -> Raw:
    """The users with ``zip_area``, the first character of their zip code."""
    frame = raw.frame.with_columns(pl.col("zip").str.slice(0, 1).alias("zip_area"))
    return replace(raw, frame=frame)


def _movies(raw: Raw, flags: list[str] | None = None) -> Raw:
    """item_id, title, year (from the title, else the release date) and genres joined by ``|``."""
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$")
    genres = pl.col("genres") if flags is None else _joined(flags)
    if flags is not None:
        year = pl.coalesce(year, pl.col("date").str.extract(r"(\d{4})$"))
    frame = raw.frame.select("item_id", "title", year.alias("year"), genres.alias("genres"))
    return Raw(raw.source, frame, raw.lines, raw.unit, raw.ragged, raw.ragged_count)


def _joined(flags: list[str]) -> pl.Expr:
    marked = [pl.when(pl.col(flag) == "1").then(pl.lit(flag)) for flag in flags]
    return pl.concat_str(marked, separator="|", ignore_nulls=True)


def _not_official(archive: Archive, name: str, content: bytes, rows: int, remote: Remote) -> DataError:
    found = content.count(b"\n") + (not content.endswith(b"\n"))
    return DataError(
        f"{name} in {archive.path} is not the official file: it has {found:,} rows, the official one {rows:,}, and its "
        f"checksum differs; altered copies are in circulation, get {remote.url}"
    )
