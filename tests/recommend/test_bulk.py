import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import DOT, ITEMS, STARS, USERS, bundle
from polars.testing import assert_frame_equal

from polytask.bundle import Bundle
from polytask.errors import ConfigError, DataError, StateError
from polytask.recommend.bulk import recommend_all
from polytask.recommend.ids import Ids
from polytask.recommend.mix import Mix
from polytask.recommend.query import Query

ASKED = ["u03", "nobody", "u10", "u03", "Ω \u2028 x", "u39", "u00", "nobody"]
SCHEMA: dict[str, Any] = {
    "user": pl.String, "item": pl.String, "score": pl.Float64, "rank": pl.Int64, "watch": pl.Float32,
    "stars": pl.Float32,
}  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("planted"), DOT, STARS)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.csv"
    pl.DataFrame({"note": ['a "b"'] * len(ASKED), "user": ASKED}).write_csv(path)
    return path


def one_by_one(found: Bundle, **options: Any) -> pl.DataFrame:
    return pl.concat([found.recommend(user, **options) for user in ASKED])


def assert_same(told: pl.DataFrame, expected: pl.DataFrame) -> None:
    assert_frame_equal(told, expected.cast(SCHEMA), rel_tol=1e-4, abs_tol=1e-5)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 4, "exclude_seen": False},
        {"k": ITEMS},
        {"candidates": ("i03", "i04", "i05", "none"), "exclude": ("i04",)},
        {"mix": "watch * 0.2 + stars"},
        {"mix": "stars", "k": 3},
        {"diversity": 0.5, "k": 5},
        {"candidates": ("none",)},
        {"candidates": ("none",), "mix": "stars"},
    ],
)
def test_answers_are_those_of_one_question_per_user(
    planted: Bundle, users: Path, tmp_path: Path, options: dict[str, Any], ending: str
) -> None:
    mix = Mix.parse(options["mix"], planted.tasks) if "mix" in options else None
    to = recommend_all(planted, users, tmp_path / f"out.{ending}", Query(**(options | {"mix": mix})))
    told = pl.read_parquet(to) if ending == "parquet" else pl.read_csv(to, schema=SCHEMA)
    assert_same(told, one_by_one(planted, **options))
    assert sorted(p.name for p in tmp_path.iterdir()) == [to.name, "users.csv"]


def test_without_a_file_every_known_user_is_answered(planted: Bundle, tmp_path: Path) -> None:
    told = pl.read_parquet(recommend_all(planted, None, tmp_path / "out.parquet", Query(k=2)))
    assert told["user"].to_list() == [f"u{k:02}" for k in range(USERS) for _ in range(2)]


@settings(max_examples=8)
@given(size=st.integers(1, 20), mixed=st.booleans())
def test_the_size_of_parts_changes_nothing(
    planted: Bundle, tmp_path_factory: pytest.TempPathFactory, size: int, mixed: bool
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    pl.DataFrame({"user": ASKED}).write_parquet(folder / "users.parquet")
    query = Query(k=7, mix=Mix.parse("watch * stars", planted.tasks) if mixed else None)
    told = [
        pl.read_parquet(recommend_all(planted, folder / "users.parquet", folder / "out.parquet", query, size=s))
        for s in (size, 1000)
    ]
    assert_frame_equal(*told, rel_tol=1e-6)


KILLED = """
import os, signal, sys
from polytask.bundle import Bundle
from polytask.recommend.bulk import recommend_all
from polytask.recommend.query import Query

def die(done, total):
    if done >= 4:
        os.kill(os.getpid(), signal.SIGKILL)

recommend_all(Bundle.load(sys.argv[1]), sys.argv[2], sys.argv[3], Query(k=5), size=2, progress=die)
"""


def test_a_killed_call_goes_on_and_ends_as_if_it_had_not_been(planted: Bundle, users: Path, tmp_path: Path) -> None:
    to, whole = tmp_path / "out.parquet", tmp_path / "whole.parquet"
    to.write_text("what was there before")
    command = [sys.executable, "-c", KILLED, str(planted.folder), str(users), str(to)]
    assert subprocess.run(command, env=os.environ).returncode == -signal.SIGKILL
    assert to.read_text() == "what was there before"
    parts = sorted((tmp_path / "out.parquet.parts").glob("*.parquet"))
    assert [p.name for p in parts] == ["000000.parquet", "000001.parquet"]
    made = [p.stat().st_mtime_ns for p in parts]
    seen: list[tuple[list[int], int]] = []

    def look(done: int, total: int) -> None:
        seen.append(([p.stat().st_mtime_ns for p in parts], done))

    recommend_all(planted, users, to, Query(k=5), size=2, progress=look)
    assert seen == [(made, 4), (made, 6), (made, 8)]
    recommend_all(planted, users, whole, Query(k=5), size=2)
    assert to.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "out.parquet.parts").exists()


def interrupted(found: Bundle, users: Path, to: Path, **options: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recommend_all(found, users, to, Query(k=5), size=2, progress=stop)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"k": 6}, "k was 5, now 6"),
        ({"exclude_seen": False}, "exclude_seen was True, now False"),
        ({"mix": Mix.single("stars")}, "mix was 'watch', now 'stars'"),
        ({"candidates": ("i01",)}, r"candidates was None, now \['i01'\]"),
    ],
)
def test_parts_of_other_options_are_refused(
    planted: Bundle, users: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    to = tmp_path / "out.parquet"
    interrupted(planted, users, to)
    with pytest.raises(StateError, match=rf"out\.parquet\.parts holds the beginning of other answers \({told}\)"):
        recommend_all(planted, users, to, replace(Query(k=5), **change), size=2)


def test_parts_of_other_users_or_another_bundle_are_refused(planted: Bundle, users: Path, tmp_path: Path) -> None:
    to = tmp_path / "out.csv"
    interrupted(planted, users, to)
    with pytest.raises(StateError, match=r"\(bundle was '\w+', now 'another'\)"):
        recommend_all(replace(planted, version="another"), users, to, Query(k=5), size=2)
    users.write_text("user\n" + "u02\n" * len(ASKED))
    with pytest.raises(StateError, match=r"\(users was "):
        recommend_all(planted, users, to, Query(k=5), size=2)


def test_a_call_that_failed_before_its_first_part_binds_nobody(planted: Bundle, users: Path, tmp_path: Path) -> None:
    to = tmp_path / "out.csv"
    with pytest.raises(ConfigError, match="caps: column 'colour' is unknown"):
        recommend_all(planted, users, to, Query(caps={"colour": 1}))
    assert recommend_all(planted, users, to, Query(k=3)).exists()


def test_a_damaged_part_is_named(planted: Bundle, users: Path, tmp_path: Path) -> None:
    to = tmp_path / "out.csv"
    interrupted(planted, users, to)
    (tmp_path / "out.csv.parts" / "000000.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(StateError, match=r"out\.csv\.parts holds a damaged part"):
        recommend_all(planted, users, to, Query(k=5), size=2)
    assert not to.exists()


def test_processes_share_the_parts(planted: Bundle, users: Path, tmp_path: Path) -> None:
    told: list[int] = []
    one = recommend_all(planted, users, tmp_path / "one.parquet", Query(k=5), size=2)
    two = recommend_all(
        planted, users, tmp_path / "two.parquet", Query(k=5), size=2, workers=2, progress=lambda d, n: told.append(d)
    )
    assert two.read_bytes() == one.read_bytes()
    assert (told[0], told[-1]) == (0, len(ASKED))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "out.json"}, r"use \.parquet or \.csv"),
        ({"query": Query(user="u01")}, "belong to one user's question"),
        ({"query": Query(history=("i01",))}, "belong to one user's question"),
        ({"workers": 0}, "workers = 0 must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    planted: Bundle, users: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    to = tmp_path / options.pop("to", "out.csv")
    with pytest.raises(ConfigError, match=message):
        recommend_all(planted, users, to, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["users.csv"]


def ids(path: Path, name: str = "user", size: int = 3) -> list[str]:
    found = Ids.of(path, name, pl.Series([], dtype=pl.String))
    blocks = list(found.blocks(size))
    assert [len(b) for b in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert sum(map(len, blocks)) == found.count
    return [i for b in blocks for i in b]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=7))
def test_ids_are_exact_in_every_format(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    frame, folder = pl.DataFrame({"x,y": [1] * len(values), "user": values}), tmp_path_factory.mktemp("ids")
    frame.write_parquet(folder / "ids.parquet")
    frame.write_csv(folder / "ids.csv", quote_style="non_numeric")
    frame.write_csv(folder / "ids.tsv", separator="\t", quote_style="always")
    assert [ids(folder / f"ids.{e}") for e in ("parquet", "csv", "tsv")] == [values] * 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfuser\r\na\r\n\r\n007\r\n", ["a", "007"]),
        (b"user\n a \nb\rc\n1e3", [" a ", "b\rc", "1e3"]),
        (b'n,user\n"1\n2",a\n3,"b""c"\n', ["a", 'b"c']),
    ],
)
def test_ids_of_plain_and_quoted_lines(tmp_path: Path, content: bytes, expected: list[str]) -> None:
    path = tmp_path / "ids.csv"
    path.write_bytes(content)
    assert ids(path) == expected


def whole_numbers(path: Path) -> None:
    pl.DataFrame({"user": [1, None]}).write_parquet(path)


def decimals(path: Path) -> None:
    pl.DataFrame({"user": [1.0]}).write_parquet(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"user\na\n", None),
        ("a.csv", b'n,user\n"1\n2",a\n\n3,\n', r"a\.csv line 5: user is empty; fill the id or remove the row"),
        ("a.csv", b"n,user\n1,a\n2\n", r"a\.csv line 3: 1 fields where 2 are expected"),
        ("a.csv", b"users\na\n", r"a\.csv: column 'user' is unknown\. Did you mean 'users'\?"),
        ("a.csv", b"", r"a\.csv: column 'user' is unknown"),
        ("a.csv", b"user\n", r"a\.csv is empty: it has no rows after the header"),
        ("a.csv", b"user\n\xff\n", r"a\.csv: byte 0xff is not UTF-8"),
        ("a.csv", b'user\n"a\n', r"a\.csv line 2: unexpected end of data"),
        ("a.csv.gz", b"user\na\n", r"cannot read .*a\.csv\.gz: Not a gzipped file"),
        ("a.parquet", b"PAR1", r"cannot read .*a\.parquet as Parquet"),
        ("a.parquet", whole_numbers, r"a\.parquet row 2: user is empty"),
        ("a.parquet", decimals, r"a\.parquet: column 'user' is Float64; ids are text or integers"),
        ("none.csv", None, r"no file .*none\.csv"),
    ],
)
def test_a_bad_file_of_users_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes | Callable[[Path], None] | None, message: str | None
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content(path)
    if message is None:
        assert ids(path) == ["a"]
        return
    with pytest.raises(DataError, match=message) as caught:
        ids(path)
    assert "\n" not in str(caught.value)


def test_scores_descend_and_ranks_count(planted: Bundle, users: Path, tmp_path: Path) -> None:
    told = pl.read_parquet(recommend_all(planted, users, tmp_path / "out.parquet", Query(k=9), size=3))
    for n in range(len(ASKED)):
        own = told[9 * n : 9 * n + 9]
        assert own["rank"].to_list() == list(range(1, 10))
        assert (np.diff(own["score"].to_numpy()) <= 0).all()
