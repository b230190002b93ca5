import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polytask.data.synthetic import synthetic
from polytask.data.table import Dataset, read_dataset
from polytask.errors import ConfigError, DataError
from polytask.schema import Field, Schema, Task

IDS = ["007", "NA", "9007199254740993", " x", "é", "é", "null", "1.0", "0", "NaN"]
SCHEMA = Schema(
    user="user",
    item="item",
    time="ts",
    tasks=(Task("watch", "ranking"), Task("stars", "regression", label="rating", range=(1, 5))),
)


def frame(ids: list[str] = IDS, **columns: Any) -> pl.DataFrame:
    n = len(ids)
    plain = {"user": ids, "item": [f"i{k}" for k in range(n)], "rating": [3] * n, "ts": [10**9 + k for k in range(n)]}
    return pl.DataFrame(plain | columns)


def written(path: Path, table: pl.DataFrame, separator: str = ",") -> Path:
    table.write_csv(path, separator=separator)
    return path


def message(*args: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_dataset(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sources(folder: Path) -> list[Any]:
    (folder / "parts").mkdir()
    frame()[:4].write_parquet(folder / "parts/a.parquet")
    frame()[4:].write_parquet(folder / "parts/b.parquet")
    frame().write_parquet(folder / "t.parquet")
    path = written(folder / "t.csv", frame())
    (folder / "t.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    (folder / "crlf.csv").write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    frame().write_csv(folder / "quoted.csv", quote_style="always")
    pandas = pd.DataFrame({c: frame()[c].to_list() for c in frame().columns})
    tables = [path, str(path), written(folder / "t.tsv", frame(), "\t"), written(folder / "t.txt", frame(), ";")]
    tables += [folder / n for n in ("t.parquet", "parts", "t.csv.gz", "crlf.csv", "quoted.csv")]
    return [
        *tables,
        frame(),
        frame().lazy(),
        pandas,
        pandas.astype({"user": object}),
        pandas.astype({"user": "category"}),
    ]


def test_ids_are_byte_exact_from_every_source(tmp_path: Path) -> None:
    prints = set()
    for source in sources(tmp_path):
        data = read_dataset(source, SCHEMA)
        assert data.interactions["user"].to_list() == IDS, source
        assert data.interactions.dtypes == [pl.String, pl.String, pl.Float64, pl.Float64]
        assert data.rejects.read == data.rejects.accepted == len(IDS)
        prints.add(data.fingerprint())
    assert len(prints) == 1


def test_integer_ids_are_exact_and_float_ids_are_refused() -> None:
    big = [2**53 + 1, 7, 2**63 + 1]
    table = frame(["a"] * 3).with_columns(user=pl.Series(big, dtype=pl.UInt64))
    assert read_dataset(table, SCHEMA).interactions["user"].to_list() == [str(i) for i in big]
    pandas = pd.DataFrame({"user": [1.0, np.nan], "item": [1, 2], "rating": [1, 2], "ts": [1, 2]})
    assert "column 'user' is Float64, so 7 would become '7.0'" in message(pandas, SCHEMA)
    whole = pandas.assign(user=pd.array([7, 8], dtype="Int64"))
    numbers = read_dataset(whole, SCHEMA)
    assert numbers.interactions["user"].to_list() == [7, 8]
    assert numbers.as_text().interactions["user"].to_list() == ["7", "8"]
    texts = read_dataset(whole.assign(user=["7", "8"], item=["1", "2"]), SCHEMA)
    assert numbers.fingerprint() == texts.fingerprint()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=6))
def test_any_text_survives_a_quoted_file(tmp_path: Path, ids: list[str]) -> None:
    frame(ids).write_csv(tmp_path / "h.csv", quote_style="always")
    assert read_dataset(tmp_path / "h.csv", SCHEMA).interactions["user"].to_list() == ids


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.text(st.characters(codec="utf-8", exclude_characters=',"\r\n'), min_size=1), min_size=1))
def test_any_text_survives_a_plain_file(tmp_path: Path, ids: list[str]) -> None:
    lines = [f"{name},i,3,1000000000" for name in ids]
    (tmp_path / "p.csv").write_bytes("\n".join(["user,item,rating,ts", *lines]).encode())
    assert read_dataset(tmp_path / "p.csv", SCHEMA).interactions["user"].to_list() == ids


def test_wrong_separator_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "ratings.csv", frame())
    expected = """ratings.csv: one column 'user,item,rating,ts' — the separator looks like ','; set separator = ",\""""
    assert message(path, SCHEMA, separator="\t") == expected
    tabs = written(tmp_path / "tabs.csv", frame(), "\t")
    assert message(tabs, SCHEMA).endswith("the separator looks like '\\t'; set separator = \"\\t\"")
    assert read_dataset(tabs, SCHEMA, separator="\t").interactions.height == len(IDS)
    assert "not one ASCII character" in message(path, SCHEMA, separator="::")


def test_missing_column_shows_the_near_name(tmp_path: Path) -> None:
    path = written(tmp_path / "ratings.csv", frame())
    schema = Schema(user="user", item="item", tasks=(Task("stars", "regression", label="ratng"),))
    expected = "schema: no column 'ratng' in ratings.csv. Did you mean 'rating'? Columns: user, item, rating, ts"
    assert message(path, schema) == expected


def test_file_without_header(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_text("20\t1\t3\t1000000007\n03\t2\t3\t1000000009\n")
    data = read_dataset(path, SCHEMA, columns=["user", "item", "rating", "ts"])
    assert data.interactions["user"].to_list() == ["20", "03"]
    assert "name the columns with columns" in message(path, SCHEMA)
    assert "columns names 2 columns, but line 1 has 4 fields" in message(path, SCHEMA, columns=["user", "item"])
    assert "separator and columns are for text files" in message(frame(), SCHEMA, columns=["a"])


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"user,item,rating,ts\n", b'"user",item,rating,ts'])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.csv").write_bytes(content)
    assert "e.csv is empty" in message(tmp_path / "e.csv", SCHEMA)


def test_what_is_no_table(tmp_path: Path) -> None:
    assert "no file" in message(tmp_path / "none.csv", SCHEMA)
    assert "holds no *.parquet file" in message(tmp_path, SCHEMA)
    assert "int is not a table" in message(3, SCHEMA)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    assert "as Parquet" in message(tmp_path / "bad.parquet", SCHEMA)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"user,item\n" * 99)[:-9])
    assert "is the file complete?" in message(tmp_path / "cut.csv.gz", SCHEMA)
    (tmp_path / "latin.csv").write_bytes(b"user,item,rating,ts\n1,2,3,4\n\xe9,2,3,4\n")
    assert "latin.csv line 3: byte 0xe9 is not UTF-8" in message(tmp_path / "latin.csv", SCHEMA)
    (tmp_path / "open.csv").write_text('user,item,rating,ts\n1,2,3,4\n"a,2,3,4\n1,2,3,4\n')
    assert "open.csv line 3" in message(tmp_path / "open.csv", SCHEMA)
    (tmp_path / "twice.csv").write_text("user,user,rating,ts\n1,2,3,4\n")
    assert "'user' is named twice" in message(tmp_path / "twice.csv", SCHEMA)


@pytest.mark.parametrize("quote", ["", '"'])
def test_ragged_rows_are_counted_with_their_lines(tmp_path: Path, quote: str) -> None:
    lines = [f"{quote}u{k}{quote},i{k},3,1000000000" for k in range(400)]
    lines[10], lines[200] = "u,i,3", "u,i,3,1000000000,extra"
    (tmp_path / "r.csv").write_text("\n".join(["user,item,rating,ts", "", *lines, ""]))
    data = read_dataset(tmp_path / "r.csv", SCHEMA)
    assert (data.rejects.read, data.rejects.accepted, data.rejects.count) == (400, 398, 2)
    assert [reject.line for reject in data.rejects.rows] == [13, 203]
    assert str(data.rejects.rows[1]) == "r.csv line 203: 5 fields where 4 are expected; mend the row"
    assert data.interactions["user"].to_list() == [f"u{k}" for k in range(400) if k not in (10, 200)]


def test_one_percent_of_bad_rows_is_recorded_and_more_stops(tmp_path: Path) -> None:
    ratings = [7 if k == 102 else 3 for k in range(200)]
    path = written(tmp_path / "ratings.csv", frame([str(k) for k in range(200)], rating=ratings))
    data = read_dataset(path, SCHEMA)
    expected = "ratings.csv line 104: rating 7 is outside 1..5 (task 'stars'); fix the row or set range = [1, 7]"
    assert [str(reject) for reject in data.rejects.rows] == [expected]
    assert data.rejects.read == data.rejects.accepted + data.rejects.count == 200
    assert data.interactions.height == data.rejects.accepted == 199
    ratings[3] = ratings[4] = 0
    path = written(tmp_path / "ratings.csv", frame([str(k) for k in range(200)], rating=ratings))
    stopped = message(path, SCHEMA)
    assert stopped.startswith(
        "ratings.csv line 5: rating 0 is outside 1..5 (task 'stars'); fix the row or set range = [0, 7]"
    )
    assert stopped.endswith("(3 of 200 rows rejected, 1.5 %: over 1 %)")


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user", "", "user is empty"),
        ("item", "", "item is empty"),
        ("rating", "abc", "rating abc is not a finite number"),
        ("rating", "inf", "rating inf is not a finite number"),
        ("rating", "1e400", "rating 1e400 is not a finite number"),
        ("ts", "", "ts is empty"),
        ("ts", "2024-01-01", "ts 2024-01-01 is not a finite number; times are seconds since 1970"),
        ("price", "cheap", "price cheap is not a finite number"),
    ],
)
def test_each_bad_value_is_rejected(tmp_path: Path, column: str, value: str, reason: str) -> None:
    schema = Schema(user="user", item="item", time="ts", tasks=SCHEMA.tasks, fields=(Field("price", "number"),))
    columns = {c: [str(v) for v in values] for c, values in frame([str(k) for k in range(150)]).to_dict().items()}
    columns["price"] = ["1"] * 150
    columns[column][40] = value
    data = read_dataset(written(tmp_path / "t.csv", pl.DataFrame(columns)), schema)
    (reject,) = data.rejects.rows
    assert (reject.line, reject.column, reject.source) == (42, column, "t.csv")
    assert reject.reason.startswith(reason)
    assert data.interactions.height == 149


def test_missing_labels_and_numbers_are_null() -> None:
    schema = Schema(user="user", item="item", tasks=SCHEMA.tasks, fields=(Field("price", "number"), Field("tag")))
    table = frame(["a", "b", "c"], rating=[None, float("nan"), 4.0], price=[" 2 ", "", None], tag=["x", "", " y"])
    rows = read_dataset(table, schema).interactions
    assert rows["rating"].to_list() == [None, None, 4.0]
    assert rows["price"].to_list() == [2.0, None, None]
    assert rows["tag"].to_list() == ["x", None, " y"]


def test_dates_become_seconds_and_booleans_labels() -> None:
    schema = Schema(user="user", item="item", time="ts", tasks=(Task("click", "binary", label="rating"),))
    times = pl.Series([0, 86_400_500]).cast(pl.Datetime("ms"))
    rows = read_dataset(frame(["a", "b"], rating=[True, False], ts=times), schema).interactions
    assert rows["ts"].to_list() == [0.0, 86_400.5]
    assert rows["rating"].to_list() == [1.0, 0.0]
    pandas = pd.DataFrame({"user": ["a"], "item": ["b"], "rating": [1], "ts": pd.to_datetime([60], unit="s", utc=True)})
    assert read_dataset(pandas, schema).interactions["ts"].to_list() == [60.0]


def test_binary_label_is_zero_or_one_unless_a_condition_says_otherwise() -> None:
    table = frame(["a", "b"], rating=[1, 2])
    bare = Schema(user="user", item="item", tasks=(Task("click", "binary", label="rating"),))
    assert "a binary label is 0 or 1" in message(table, bare)
    given = Schema(user="user", item="item", tasks=(Task("like", "binary", positive="rating >= 4"),))
    assert read_dataset(table, given).interactions["rating"].to_list() == [1.0, 2.0]


def test_side_tables_keep_titles_and_refuse_doubles() -> None:
    schema = Schema(user="user", item="item", tasks=SCHEMA.tasks, fields=(Field("age", "number", "user"),))
    users = pl.DataFrame({"user": ["b", "a"], "age": ["30", ""], "zip": ["01234", ""], "height": [1.5, None]})
    data = read_dataset(
        frame(["a", "b"]), schema, users=users, items=pl.DataFrame({"item": [1, 2], "title": ["T", "U"]})
    )
    assert data.users is not None and data.items is not None
    assert data.users.rows(named=True)[0] == {"user": "b", "age": 30.0, "zip": "01234", "height": "1.5"}
    assert data.users.row(1) == ("a", None, None, None)
    assert data.items.rows() == [("1", "T"), ("2", "U")]
    double = pl.DataFrame({"item": ["x", "y", "x"]})
    assert (
        message(frame(["a"]), SCHEMA, items=double)
        == "items row 3: item 'x' is listed twice; keep one row for each item"
    )
    assert "users row 1: age ten is not a finite number" in message(
        frame(["a"]), schema, users=pl.DataFrame({"user": ["a"], "age": ["ten"]})
    )


def test_a_side_field_in_the_wrong_table_says_where_it_belongs() -> None:
    schema = Schema(user="user", item="item", tasks=SCHEMA.tasks, fields=(Field("age", "number", "user"),))
    assert "stands in interactions, not in a users table" in message(frame(["a"], age=[3]), schema)
    assert "there is no users table; give users" in message(frame(["a"]), schema)
    assert "no column 'age' in users. Did you mean 'ages'?" in message(
        frame(["a"]), schema, users=pl.DataFrame({"user": ["a"], "ages": [3]})
    )
    alone = Schema(tasks=(Task("stars", "regression", label="rating"),))
    with pytest.raises(ConfigError, match="users table but no user column"):
        read_dataset(frame(["a"]), alone, users=pl.DataFrame({"user": ["a"]}))


def test_a_column_cannot_be_text_and_number_at_once() -> None:
    schema = Schema(user="user", item="item", time="user", tasks=SCHEMA.tasks)
    with pytest.raises(ConfigError, match="cannot be id and time at once"):
        read_dataset(frame(["a"]), schema)


def test_odd_frames_are_refused_in_one_line() -> None:
    mixed = pd.DataFrame({"user": ["7", 7], "item": [1, 2], "rating": [1, 2], "ts": [1, 2]})
    assert "column 'user' mixes types" in message(mixed, SCHEMA)
    assert "is List(String), not text or integers" in message(frame(["a"], user=[["a"]]), SCHEMA)
    assert "is List(Int64), not a number" in message(frame(["a"], rating=[[1]]), SCHEMA)
    assert "'user' is named twice" in message(pd.concat([mixed, mixed], axis=1), SCHEMA)
    assert "interactions is empty" in message(frame([]), SCHEMA)


def test_control_characters_stay_out_of_messages() -> None:
    assert "'\\x1b[31m\\n'" in message(frame(["a"], rating=["\x1b[31m\n"]), SCHEMA)


def test_at_most_a_thousand_rejects_are_kept_but_all_are_counted() -> None:
    ratings = [9 if k % 200 == 0 else 3 for k in range(300_000)]
    data = read_dataset(frame(["a"] * 300_000, rating=ratings), SCHEMA)
    assert data.rejects.count == 1500 and len(data.rejects.rows) == 1000
    assert [reject.line for reject in data.rejects.rows[:2]] == [1, 201]


def same(first: Dataset, second: Dataset) -> bool:
    return first.fingerprint() == second.fingerprint()


def test_fingerprint_sees_values_order_names_and_missing() -> None:
    base = read_dataset(frame(["a", "bc"]), SCHEMA)
    assert same(base, read_dataset(frame(["a", "bc"]), SCHEMA, name="other"))
    for other in (frame(["ab", "c"]), frame(["bc", "a"]), frame(["a", "bc"], rating=[3, None]), frame(["a"])):
        assert not same(base, read_dataset(other, SCHEMA))
    assert not same(base, read_dataset(frame(["a", "bc"]), SCHEMA, users=pl.DataFrame({"user": ["a", "bc"]})))


@pytest.mark.parametrize("hashing", ["0", "1"])
def test_fingerprint_is_stable_across_processes(hashing: str) -> None:
    code = "from polytask.data.synthetic import synthetic; print(synthetic(30, 40, 300).fingerprint())"
    path = str(Path(__file__).parents[2] / "src")
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path, "PYTHONHASHSEED": hashing},
        capture_output=True,
        text=True,
    )
    assert out.stdout.strip() == synthetic(30, 40, 300).fingerprint(), out.stderr
