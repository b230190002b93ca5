import gzip
import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.data.check import check
from polytask.data.datasets import load, uci
from polytask.data.split import SPLITS, split
from polytask.data.synthetic import synthetic
from polytask.data.table import Dataset
from polytask.errors import ConfigError, DataError

Files = dict[str, list[str]]

KUAIRAND = "kuairand27k_explicit_kcore15.tsv"
KUAIRAND_HEAD = (
    "user_id\tvideo_id\tdate\thourmin\ttime_ms\tis_click\tis_follow\tis_comment\tis_forward\tlong_view\t"
    "play_time_ms\tduration_ms\tcomment_stay_time\tis_profile_enter\tlabel\ttimestamp"
)
LOG_HEAD = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
START = 1_511_539_200  # midnight of 25 November 2017 in Beijing


@pytest.fixture(autouse=True)
def apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data on disk but the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("POLYTASK_DATA", raising=False)


def adult_line(k: int, end: str = "", answer: str = "<=50K") -> str:
    marital = ["Never-married", "Divorced", "Married-civ-spouse"][k % 3]
    people = ["Own-child", "Unmarried", "Husband"][k % 3]
    work = "?" if k % 7 == 0 else "Private"
    person = f"HS-grad, 9, {marital}, Sales, {people}, White, Male, {k}, 0, 40, Cuba"
    return f"{20 + k % 50}, {work}, {9000 + k}, {person}, {answer}{end}"


def adult_files(rows: int = 60) -> Files:
    train, test = ([adult_line(k, end, ">50K" if k % 4 == 0 else "<=50K") for k in range(rows)] for end in ("", "."))
    return {"adult.data": [*train, ""], "adult.test": ["|1x3 Cross validator", *test, ""]}


def census_line(k: int, answer: str | None = None) -> str:
    values = [f"{name} {k % 3}" for name in uci._CENSUS_LAYOUT.columns]
    for column, value in {
        **{c: str(k % 90) for c in uci._CENSUS_LAYOUT.numbers},
        "instance_weight": f"{1000 + k}.5",
        "marital_stat": "Never married" if k % 2 else "Widowed",
        "mig_same": "?",
        "citizenship": "Foreign born- Not a citizen of U S ",
        "state_prev_res": "Not in universe",
        "income_50k": answer or ("50000+." if k % 5 == 0 else "- 50000."),
    }.items():
        values[uci._CENSUS_LAYOUT.columns.index(column)] = value
    return ", ".join(values)


def census_files(train: int = 80, test: int = 40) -> Files:
    return {f"census-income.{p}": [census_line(k) for k in range(n)] for p, n in (("data", train), ("test", test))}


def kuairand_line(k: int, **given: object) -> str:
    values: dict[str, object] = dict.fromkeys(KUAIRAND_HEAD.split("\t"), 0)
    values |= {"user_id": k % 9, "video_id": k % 13, "hourmin": 300, "time_ms": 1_649_581_149_287 + 1000 * k}
    values |= {
        "label": int(k % 5 > 0),
        "is_click": k % 2,
        "play_time_ms": 1500 * k,
        "duration_ms": 2000,
        "timestamp": "x",
    }
    return "\t".join(map(str, (values | given).values()))


def user_lines(users: int = 9) -> list[str]:
    ranges = [f"{c}_user_num{end}" for c in ("follow", "fans", "friend") for end in ("", "_range")]
    names = ["user_id", "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author", *ranges]
    names += ["register_days", "register_days_range", *(f"onehot_feat{k}" for k in range(18))]
    rows = [[str(u), "full_active", *['"[1,5)"'] * (len(names) - 2)] for u in range(users)]
    return [",".join(row) for row in [names, *rows]]


def kuairand_files(rows: int = 60) -> Files:
    log = [KUAIRAND_HEAD, *(kuairand_line(k) for k in range(rows))]
    return {KUAIRAND: log, "user_features_pure.csv": user_lines()}


def taobao_line(k: int, behavior: str = "pv", time: object = None) -> str:
    return f"{k % 7},{k % 11},{k % 11 % 4},{behavior},{START + 60 * k if time is None else time}"


def taobao_files(rows: int = 60) -> Files:
    return {"UserBehavior.csv": [taobao_line(k, "cart" if k % 6 == 5 else "pv") for k in range(rows)]}


def aliexpress_line(k: int, click: object = None, conversion: object = 0) -> str:
    categories, numbers = [str(k % 3)] * 16, [str(k / 8)] * 63
    return ",".join([str(k), *categories, *numbers, str(k % 2 if click is None else click), str(conversion)])


def aliexpress_files(rows: int = 60) -> Files:
    names = ["search_id", *(f"categorical_{k}" for k in range(1, 17)), *(f"numerical_{k}" for k in range(1, 64))]
    head = ",".join([*names, "click", "conversion"])
    return {f"{part}.csv": [head, *(aliexpress_line(k) for k in range(rows))] for part in ("train", "test")}


def ali_ccp_line(k: int, click: object = None, purchase: object = 0) -> str:
    return f"{k % 2 if click is None else click},{purchase},{k % 7},3,{k % 11},{k % 5},{k / 8}"


def ali_ccp_files(rows: int = 60) -> Files:
    lines = ["click,purchase,101,121,205,109_14,D109_14", *(ali_ccp_line(k) for k in range(rows))]
    return {f"ali_ccp_{part}.csv": lines for part in ("train", "val", "test")}


def put(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def accept(patch: pytest.MonkeyPatch, files: Files) -> None:
    """Take the made-up files for the official ones."""
    sums = {n: hashlib.md5(("\n".join(lines) + "\n").encode()).hexdigest() for n, lines in files.items()}
    patch.setattr(uci, "_ADULT", {n: s for n, s in sums.items() if n.startswith("adult")})
    patch.setattr(uci, "_CENSUS_TEST", sums.get("census-income.test", ""))
    patch.setattr(uci, "_CENSUS_ROWS", len(files.get("census-income.data", [])))


def read(name: str, folder: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    accept(monkeypatch, files)
    return load(name, put(folder, files), download=False)


# Data set -> its files, the one that gets bad lines, where its rows start, and lines that must be rejected.
LAYOUTS = {
    "adult": (
        adult_files(400),
        "adult.test",
        1,
        ["1, 2", adult_line(1, answer="50K"), adult_line(1).replace("40", "x")],
    ),
    "census": (
        census_files(400, 400),
        "census-income.test",
        0,
        ["", census_line(1, "50000"), census_line(2).rsplit(",", 1)[0]],
    ),
    "kuairand": (
        kuairand_files(400),
        KUAIRAND,
        1,
        [kuairand_line(3), kuairand_line(3, time_ms="x"), kuairand_line(3, user_id=""), kuairand_line(3, is_click=2)],
    ),
    "taobao": (
        taobao_files(400),
        "UserBehavior.csv",
        0,
        [taobao_line(1, time=START - 1), taobao_line(1, time="?"), taobao_line(1, "view"), ",4,1,pv,1511800000", "1,2"],
    ),
    "aliexpress": (
        aliexpress_files(400),
        "test.csv",
        1,
        [aliexpress_line(3, 0, 1), aliexpress_line(3, 7), aliexpress_line(3, "x"), "1,2,3"],
    ),
    "ali-ccp": (
        ali_ccp_files(400),
        "ali_ccp_val.csv",
        1,
        [ali_ccp_line(3, 0, 1), ali_ccp_line(3, purchase=2), ali_ccp_line(3) + ",1"],
    ),
}


def rows_of(name: str, files: Files) -> int:
    """Lines that are rows: no header, no comment, not empty, and not of the users table."""
    headed = name not in ("adult", "census", "taobao")
    logs = [lines for file, lines in files.items() if not file.startswith("user_features")]
    return sum(len([x for x in lines[headed:] if x and not x.startswith("|")]) for lines in logs)


@pytest.mark.parametrize("name", LAYOUTS)
@given(drawn=st.data())
@settings(max_examples=15)
def test_rows_read_are_those_accepted_and_those_rejected(name: str, drawn: st.DataObject) -> None:
    files, target, start, faults = LAYOUTS[name]
    lines = list(files[target])
    for _ in range(drawn.draw(st.integers(0, 4))):
        lines.insert(drawn.draw(st.integers(start + 1, len(lines))), drawn.draw(st.sampled_from(faults)))
    changed = files | {target: lines}
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        data = read(name, Path(folder), changed, patch)
    copy = kuairand_line(3)  # the only fault that is right when it is seen first
    wrong = [n for n, x in enumerate(lines, 1) if x and x in faults and (x != copy or x in lines[: n - 1])]
    assert data.rejects.read == rows_of(name, changed) == data.rejects.accepted + data.rejects.count
    assert [r.line for r in data.rejects.rows] == wrong and data.rejects.count == len(wrong)
    assert {r.source for r in data.rejects.rows} <= {target}
    assert (data.interactions.height == data.rejects.accepted) == (name != "taobao")
    if name in ("adult", "census", "aliexpress", "ali-ccp"):
        test = next(file for file in files if "test" in file)
        last = rows_of(name, {test: changed[test]}) - len(wrong) * (test == target)
        assert data.official is not None
        assert data.official.tolist() == [False] * (data.rejects.accepted - last) + [True] * last
    else:
        assert data.official is None


def test_adult_has_the_official_parts_and_no_input_that_gives_the_answer_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read("adult", tmp_path, adult_files(9), monkeypatch)
    names = [f.name for f in data.schema.inputs]
    assert " ".join(names) == (
        "age workclass education occupation race sex capital_gain capital_loss hours_per_week native_country"
    )
    assert data.interactions.columns == [*names, "income", "never_married"]
    assert data.official is not None and data.official.tolist() == [False] * 9 + [True] * 9
    half = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert data.interactions["income"].to_list() == half * 2  # the dot of the test part is no part of the answer
    assert data.interactions["never_married"].to_list() == [1, 0, 0] * 6
    assert data.interactions["workclass"].to_list()[:2] == [None, "Private"] and data.name == "adult"
    assert data.rejects.count == 0


def test_adult_altered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = adult_files()
    accept(monkeypatch, files)
    put(tmp_path, files | {"adult.data": files["adult.data"][1:]})
    with pytest.raises(DataError, match=r"adult\.data in .* is not the official file"):
        load("adult", tmp_path)
    (tmp_path / "adult.test").unlink()
    put(tmp_path, {"adult.data": files["adult.data"]})
    with pytest.raises(DataError, match=r"holds no adult\.test"):
        load("adult", tmp_path)


def test_census_reads_neither_education_nor_marital_status_nor_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read("census", tmp_path, census_files(), monkeypatch)
    names = {f.name for f in data.schema.inputs}
    assert len(names) == 38 and {"det_hh_fam_stat", "year", "age"} <= names
    unread = {"education", "marital_stat", "instance_weight", "income_50k"}
    assert not unread & names and not unread & set(data.interactions.columns)
    assert {f.name for f in data.schema.fields if f.kind == "number"} == set(uci._CENSUS_LAYOUT.numbers)
    rows = data.interactions
    assert rows["income"].to_list()[:6] == [1, 0, 0, 0, 0, 1] and rows["never_married"].to_list()[:4] == [0, 1, 0, 1]
    assert rows["mig_same"].null_count() == 120  # a question mark is missing, not in universe is a value
    assert set(rows["state_prev_res"]) == {"Not in universe"}
    assert set(rows["citizenship"]) == {"Foreign born- Not a citizen of U S"}
    assert data.official is not None and (data.name, int(data.official.sum())) == ("census", 40)


def test_census_keeps_people_with_equal_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = census_files()
    files["census-income.test"] += files["census-income.test"][:7]
    data = read("census", tmp_path, files, monkeypatch)
    assert (data.rejects.read, data.rejects.count, data.interactions.height) == (127, 0, 127)


def test_census_without_its_train_part_says_so_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = census_files()
    part = {
        "census-income.test": files["census-income.test"],
        "census-income.data.first1891": files["census-income.data"],
    }
    data = read("census", tmp_path, part, monkeypatch)
    assert data.name == "census (official test part alone, not comparable with published results)"
    assert data.interactions.height == 40 and data.official is None
    assert check(data).lines()[0].startswith("census (official test part alone, not comparable")
    with pytest.raises(ConfigError, match=r"not comparable with published results.* has no official test part"):
        split(data, "official")


def test_census_with_a_piece_of_its_train_part_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch, census_files())
    put(tmp_path, census_files(train=79))
    with pytest.raises(DataError, match=r"census-income\.data in .* has 79 rows, the official one 80"):
        load("census", tmp_path)


def test_census_is_read_from_the_official_zip_with_a_tar_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = census_files()
    accept(monkeypatch, files)
    tar, outer = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        for name, lines in files.items():
            info, content = tarfile.TarInfo(name), ("\n".join(lines) + "\n").encode()
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("census.tar.gz", tar.getvalue())
    (tmp_path / "census+income+kdd.zip").write_bytes(outer.getvalue())
    data = load("census", tmp_path, download=False)
    assert data.interactions.height == 120 and [p.name for p in tmp_path.iterdir()] == ["census+income+kdd.zip"]


def test_kuairand_has_eight_tasks_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read("kuairand", tmp_path, kuairand_files(), monkeypatch)
    tasks = ("click", "long_view", "like", "follow", "comment", "forward", "profile", "watch_time")
    assert data.schema.task_names == tasks
    assert [t.kind for t in data.schema.tasks] == ["binary"] * 7 + ["regression"]
    assert data.schema.task("watch_time").by == "duration"
    rows = data.interactions
    assert rows["time"].to_list()[:2] == [1_649_581_149.287, 1_649_581_150.287]
    assert rows["watch_time"].to_list()[:3] == [0, 1.5, 3] and rows["duration"].to_list()[:2] == [2, 2]
    assert (rows["watch_time"] > rows["duration"]).any()  # replays
    assert rows["like"].to_list()[:6] == [0, 1, 1, 1, 1, 0]  # 1 liked, 0 hated
    assert rows["hour"][0] == "16"  # 08:59 in Greenwich
    assert "not real traffic" in data.name and data.users is not None and data.users.height == 9
    inputs = {f.name for f in data.schema.inputs}
    assert not inputs & {"comment_stay_time", "play_time_ms", "profile_stay_time", "label", "is_hate"}


def test_kuairand_a_duration_of_zero_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = kuairand_files()
    files[KUAIRAND] += [kuairand_line(99, duration_ms=0, play_time_ms=700)]
    data = read("kuairand", tmp_path, files, monkeypatch)
    assert data.interactions["duration"].to_list()[-2:] == [2, None]
    assert data.interactions["watch_time"][-1] == pytest.approx(0.7, rel=1e-12) and data.rejects.count == 0


def test_kuairand_rejects_exact_copies_and_keeps_repeated_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = kuairand_files()
    files[KUAIRAND] += [kuairand_line(5)] * 40 + [kuairand_line(5, time_ms=1_649_600_000_000)]
    with pytest.raises(DataError, match=r"line 62: video_id 5 stands in an exact copy.* over 1 %"):
        read("kuairand", tmp_path, files, monkeypatch)
    files = kuairand_files(400)
    files[KUAIRAND] += [kuairand_line(5), kuairand_line(5, time_ms=1_649_600_000_000)]
    data = read("kuairand", tmp_path, files, monkeypatch)
    assert (data.rejects.read, data.rejects.count, data.interactions.height) == (402, 1, 401)


def log_line(k: int, **given: object) -> str:
    values: dict[str, object] = dict.fromkeys(LOG_HEAD.split(","), 0)
    values |= {"user_id": k % 9, "video_id": k % 13, "time_ms": 1_650_000_000_000 + k, "tab": k % 3, "is_like": k % 2}
    return ",".join(str(v) for v in (values | {"duration_ms": 9000, "play_time_ms": 100 * k} | given).values())


@pytest.mark.parametrize("size", ["pure", "1k"])
def test_kuairand_official_logs(tmp_path: Path, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ("random_4_22_to_5_08", "standard_4_22_to_5_08", "standard_4_08_to_4_21")
    files = {
        f"log_{part}_{size}.csv": [LOG_HEAD, *(log_line(k) for k in range(n))]
        for part, n in zip(parts, (3, 5, 7), strict=True)
    }
    files[f"user_features_{size}.csv"] = user_lines()
    video = ["video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,music_type,tag"]
    files[f"video_features_basic_{size}.csv"] = video + [
        f'{k},{k % 4},AD,2022-04-10,Web,0.0,,9.0,"{k},67"' for k in range(13)
    ]
    inner = tmp_path / {"pure": "KuaiRand-Pure", "1k": "KuaiRand-1K"}[size] / "data"
    put(inner, files)
    data = load("kuairand", tmp_path, download=False)
    assert (data.name, data.rejects.read, data.interactions.height) == (f"kuairand-{size}", 15, 15)
    assert data.interactions["time"].to_list()[:8] == [1_650_000_000 + k / 1000 for k in (*range(7), 0)]
    assert data.interactions["like"].to_list()[:4] == [0, 1, 0, 1]
    assert {f.name for f in data.schema.fields} >= {"tab", "hour", "duration"}
    assert (data.items is not None) == (size == "pure") == ("author_id" in {f.name for f in data.schema.fields})
    if data.items is not None:
        assert data.items["tag"].to_list()[1] == "1,67" and data.schema.inputs[-1].side == "context"


def test_kuairand_pure_is_read_from_the_official_archive(tmp_path: Path) -> None:
    files = {
        f"log_{part}_pure.csv": [LOG_HEAD, log_line(1)]
        for part in ("standard_4_08_to_4_21", "standard_4_22_to_5_08", "random_4_22_to_5_08")
    }
    files |= {"user_features_pure.csv": user_lines()}
    files |= {
        "video_features_basic_pure.csv": [
            "video_id,author_id,video_type,upload_type,music_type,tag",
            "1,1,AD,Web,9.0,3",
        ]
    }
    with tarfile.open(tmp_path / "KuaiRand-Pure.tar.gz", "w:gz") as archive:
        for name, lines in files.items():
            content = "\n".join(lines).encode()
            info = tarfile.TarInfo(f"KuaiRand-Pure/data/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    data = load("kuairand", tmp_path, download=False)
    assert data.interactions.height == 3 and data.items is not None and data.items.height == 1


def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> Dataset:
    return read("taobao", tmp_path, {"UserBehavior.csv": list(lines)}, monkeypatch)


def test_taobao_asks_what_follows_the_first_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = events(
        tmp_path,
        monkeypatch,
        f"1,7,70,cart,{START + 5}",  # before the view: does not count
        f"1,7,70,pv,{START + 9}",
        f"1,7,70,pv,{START + 20}",  # a later view makes no row
        f"1,7,70,buy,{START + 9}",  # of the same second: follows
        f"1,7,70,fav,{START + 500_000}",
        f"1,8,80,pv,{START + 30}",
        f"1,9,90,buy,{START + 40}",  # never viewed: no row
        f"2,7,70,buy,{START + 50}",  # another user's
        f"2,8,80,pv,{START + 3600}",
        f"2,8,80,cart,{START + 7200}",
        f"2,8,80,cart,{START + 7201}",
    )
    assert data.interactions.columns == ["user_id", "item_id", "time", "hour", "favorite", "cart", "buy"]
    assert data.interactions.rows() == [
        ("1", "7", START + 9, "0", 1, 0, 1),
        ("1", "8", START + 30, "0", 0, 0, 0),
        ("2", "8", START + 3600, "1", 0, 1, 0),
    ]
    assert data.items is not None and data.items.rows() == [("7", "70"), ("8", "80"), ("9", "90")]
    assert (data.rejects.read, data.rejects.accepted, data.official) == (11, 11, None)
    assert data.schema.task_names == ("favorite", "cart", "buy") and data.schema.time == "time"


def test_taobao_takes_the_nine_days_in_beijing_and_counts_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [taobao_line(k) for k in range(600)]
    ends = [START - 1, START, START + 9 * 86400 - 1, START + 9 * 86400, 1_505_117_799]
    data = events(tmp_path, monkeypatch, *lines, *(f"99,{k},1,pv,{time}" for k, time in enumerate(ends)))
    assert [r.line for r in data.rejects.rows] == [601, 604, 605]
    assert str(data.rejects.rows[0]) == (
        f"UserBehavior.csv line 601: time {START - 1} is outside 25 Nov to 3 Dec 2017 (Beijing)"
    )
    kept = data.interactions.filter(pl.col("user_id") == "99")
    assert kept["time"].to_list() == ends[1:3] and kept["hour"].to_list() == ["0", "23"]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 3), st.sampled_from(["pv", "fav", "cart", "buy"]), st.integers(0, 9)
        ),
        min_size=1,
        max_size=40,
    )
)
@settings(max_examples=40)
def test_taobao_agrees_with_the_definition(log: list[tuple[int, int, str, int]]) -> None:
    with TemporaryDirectory() as folder:
        lines = [f"{u},{i},{i},{b},{START + t}" for u, i, b, t in log]
        data = load("taobao", put(Path(folder), {"UserBehavior.csv": lines}), download=False)
    views: dict[tuple[int, int], int] = {}
    for user, item, behavior, time in log:
        if behavior == "pv":
            views[user, item] = min(time, views.get((user, item), time))
    expected = {
        (
            str(u),
            str(i),
            float(START + t),
            *(float(any(e[:3] == (u, i, b) and e[3] >= t for e in log)) for b in ("fav", "cart", "buy")),
        )
        for (u, i), t in views.items()
    }
    found = data.interactions.drop("hour").rows()
    assert set(found) == expected and len(found) == len(expected)


def test_aliexpress_and_ali_ccp_condition_on_the_click(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    express = read("aliexpress", tmp_path / "a", aliexpress_files(), monkeypatch)
    ccp = read("ali-ccp", tmp_path / "b", ali_ccp_files(), monkeypatch)
    assert [(t.name, t.given) for t in express.schema.tasks] == [("click", None), ("conversion", "click")]
    assert [(t.name, t.given) for t in ccp.schema.tasks] == [("click", None), ("purchase", "click")]
    kinds = [f.kind for f in express.schema.inputs]
    assert (kinds.count("category"), kinds.count("number")) == (16, 63)
    assert "search_id" not in express.interactions.columns and express.schema.user is None
    assert [f.name for f in ccp.schema.inputs] == ["101", "205", "121", "109_14", "D109_14"]
    assert [f.kind for f in ccp.schema.inputs] == ["category"] * 4 + ["number"]
    assert express.official is not None and ccp.official is not None
    assert (int(express.official.sum()), express.name, int(ccp.official.sum()), ccp.name) == (
        60,
        "aliexpress",
        60,
        "ali-ccp",
    )


def test_a_toy_sample_says_so_in_its_name(tmp_path: Path) -> None:
    names = {"train": "aliexpress_train_sample", "test": "aliexpress_test_sample"}
    files = {f"{names[Path(n).stem]}.csv": lines for n, lines in aliexpress_files(5).items()}
    ccp = {n.replace(".csv", "_sample.csv"): lines for n, lines in ali_ccp_files(5).items()}
    put(tmp_path / "tiny-samples", files | ccp)
    for name in ("aliexpress", "ali-ccp"):
        assert load(name, tmp_path).name == f"{name} (sample, for trying out alone)"


def test_gzip_files_are_read_as_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = adult_files(30)
    accept(monkeypatch, files)
    for name, lines in files.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    assert load("adult", tmp_path, download=False).interactions.height == 60


@pytest.mark.parametrize("valid", [0.0, 0.25])
@pytest.mark.parametrize("test", [0.0, 0.5])
def test_the_official_split_keeps_the_official_test_part(
    tmp_path: Path, valid: float, test: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read("adult", tmp_path, adult_files(40), monkeypatch)
    cut = split(data, "official", valid=valid, test=test, seed=1)
    assert [0 if p is None else len(p) for p in (cut.train, cut.valid, cut.test)] == [
        40 - round(40 * valid),
        round(40 * valid),
        40,
    ]
    assert cut.test is not None
    assert cut.test.labels[:, 0].tolist() == data.interactions["income"].to_list()[40:]


def test_the_official_split_draws_valid_from_the_other_rows_by_seed() -> None:
    data = synthetic(users=10, items=20, rows=100)
    flags = np.arange(100) % 3 == 0
    cut = SPLITS["official"]
    first, again, other = (cut(replace(data, official=flags), 0.2, 0.4, seed) for seed in (5, 5, 6))
    assert [p.tolist() for p in first] == [p.tolist() for p in again] and first[1].tolist() != other[1].tolist()
    assert first[2].tolist() == np.flatnonzero(flags).tolist() and len(first[1]) == round(0.2 * 66)
    assert sorted(np.concatenate(first).tolist()) == list(range(100))
    with pytest.raises(ConfigError, match="synthetic has no official test part; use 'random'"):
        cut(data, 0.2, 0.4, 0)


def test_official_is_one_bool_for_each_row_and_counts_in_the_fingerprint() -> None:
    data = synthetic(users=5, items=10, rows=20)
    flags = np.arange(20) < 3
    prints = {d.fingerprint() for d in (data, replace(data, official=flags), replace(data, official=~flags))}
    assert len(prints) == 3
    for wrong in (flags[:-1], flags.astype(int)):
        with pytest.raises(DataError, match="give one bool for each of the 20 rows"):
            replace(data, official=wrong)
