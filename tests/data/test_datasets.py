import gzip
import hashlib
import io
import os
import urllib.error
import zipfile
from pathlib import Path

import pytest

from polytask.data.datasets import DATASETS, download, load, movielens
from polytask.data.datasets.archive import Archive
from polytask.data.datasets.download import Offline, Remote, locate
from polytask.data.split import split
from polytask.errors import ConfigError, DataError

REAL = os.environ.get("POLYTASK_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="POLYTASK_DATA is not set")

U_DATA = b"20\t1\t3\t1000000007\n3\t2\t5\t1000000005\n11\t2\t1\t1000000006\n"
FILES = {
    "u.data": U_DATA,
    "u.user": b"20|33|M|baker|01234\n3|44|F|pilot|00000\n11|55|M|baker|99999\n",
    "u.item": '1|Na\xefve "N" (1931)|24-Jan-1932||http://x|0|1|1\n2|Old|01-Jan-1950||http://y|0|0|1\n'
    "3|unknown||||1|0|0\n".encode("iso-8859-1"),
    "u.genre": b"unknown|0\nAction|1\nComedy|2\n\n",
}


@pytest.fixture(autouse=True)
def apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data on disk and no net, unless a test gives them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("POLYTASK_DATA", raising=False)
    monkeypatch.setattr(download.urllib.request, "urlopen", unreachable)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "_U_DATA", hashlib.sha256(U_DATA).hexdigest())


def unreachable(url: str, timeout: float) -> io.BytesIO:
    assert url.startswith("https://") and timeout <= 10
    raise urllib.error.URLError(OSError(-2, "name not known"))


def zipped(files: dict[str, bytes] = FILES, prefix: str = "ml-100k/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return buffer.getvalue()


def put(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_unknown_name_shows_the_near_one() -> None:
    with pytest.raises(ConfigError, match=r"data set 'movielens-10k' is unknown. Did you mean 'movielens-100k'"):
        load("movielens-10k")
    movielens = {"movielens-100k", "movielens-1m", "movielens-latest-small"}
    others = {"adult", "ali-ccp", "aliexpress", "census", "kuairand", "synthetic", "synthetic-regression", "taobao"}
    assert set(DATASETS) == movielens | others


@pytest.mark.parametrize(
    "layout", ["folder", "parent", "zip", "zip beside", "zip inside", "flat zip", "environment", "cache"]
)
@pytest.mark.usefixtures("small")
def test_every_layout_reads_the_same(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder: Path | None = tmp_path
    if layout in ("folder", "parent", "environment"):
        put(tmp_path / "ml-100k")
        folder = tmp_path / "ml-100k" if layout == "folder" else tmp_path
    elif layout != "cache":
        inner = tmp_path / "ml-100k" if layout == "zip inside" else tmp_path
        inner.mkdir(exist_ok=True)
        (inner / "ml-100k.zip").write_bytes(zipped(prefix="" if layout == "flat zip" else "ml-100k/"))
        folder = inner / "ml-100k.zip" if layout in ("zip", "flat zip") else tmp_path
    if layout == "environment":
        monkeypatch.setenv("POLYTASK_DATA", str(tmp_path))
        folder = None
    if layout == "cache":
        put(download.cache_folder(), {"ml-100k.zip": zipped()})
        folder = None
    data = load("movielens-100k", folder)
    assert data.interactions.rows()[0] == ("20", "1", 1000000007.0, 3.0)
    assert data.interactions["user_id"].to_list() == ["20", "3", "11"]
    assert data.users is not None and data.items is not None
    assert data.users.row(1) == ("3", "44", "F", "pilot", "00000", "0")
    assert data.items.rows() == [
        ("1", 'Naïve "N" (1931)', "1931", "Action|Comedy"),
        ("2", "Old", "1950", "Comedy"),
        ("3", "unknown", None, "unknown"),
    ]
    assert data.schema.task_names == ("watch", "rating") and data.schema.time == "timestamp"


@pytest.mark.parametrize("rows", [2, 4])
def test_altered_ratings_are_refused_with_their_row_count(tmp_path: Path, rows: int) -> None:
    put(tmp_path, FILES | {"u.data": b"20\t1\t3\t1000000007\n" * rows})
    with pytest.raises(DataError, match=rf"has {rows} rows, the official one 100,000.*files.grouplens.org"):
        load("movielens-100k", tmp_path)


@pytest.mark.parametrize("size", [0, 10, 200, -1, -30])
@pytest.mark.usefixtures("small")
def test_truncated_zip(tmp_path: Path, size: int) -> None:
    (tmp_path / "ml-100k.zip").write_bytes(zipped()[:size])
    with pytest.raises(DataError, match="not a complete zip file") as caught:
        load("movielens-100k", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("small")
def test_a_flipped_bit_in_a_zip_is_found(tmp_path: Path) -> None:
    content = bytearray(zipped())
    content[content.index(b"u.user") + 12] ^= 1
    (tmp_path / "ml-100k.zip").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"u\.user"):
        load("movielens-100k", tmp_path)


def test_zip_members_are_capped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zipped({"bomb": b"0" * 10**6, "plain": bytes(range(256))}, prefix="../"))
    with pytest.raises(DataError, match="unpacks to over 100 times its size"):
        Archive(path).read("bomb")
    with pytest.raises(DataError, match=r"holds no \.\./\.\./etc"):
        Archive(path).read("../../etc")
    monkeypatch.setattr("polytask.data.datasets.archive._LARGEST", 100)
    with pytest.raises(DataError, match="is larger than"):
        Archive(path).read("plain")
    assert list(tmp_path.iterdir()) == [path]


def test_offline_is_one_line_with_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Offline) as caught:
        load("movielens-100k", tmp_path)
    address = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
    assert str(caught.value) == (
        f"cannot download {address}: name not known; put ml-100k.zip in {tmp_path} or set POLYTASK_DATA"
    )
    assert isinstance(caught.value, DataError)
    output = capsys.readouterr()
    assert "not for commercial use" in " ".join(output.err.split()) and not output.out
    with pytest.raises(Offline, match="downloading is off"):
        load("movielens-1m", download=False)


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(content))


def remote(content: bytes, final: bool = True) -> Remote:
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    url = "https://example.org/ml-100k.zip"
    return Remote("ml-100k", url, "Condition: to be cited.", len(content), digest, final=final)


def test_download_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, zipped())
    archive = locate(remote(zipped()), ("u.data",), tmp_path / "new", True)
    assert archive.read("u.data") == U_DATA
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["ml-100k.zip"]
    monkeypatch.setattr(download.urllib.request, "urlopen", unreachable)
    assert locate(remote(zipped()), ("u.data",), tmp_path / "new", True).read("u.data") == U_DATA


def test_checksum_mismatch_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, zipped()[:-1] + b"!")
    with pytest.raises(DataError, match="damaged or replaced") as caught:
        locate(remote(zipped()), ("u.data",), tmp_path, True)
    assert not isinstance(caught.value, Offline) and not list(tmp_path.iterdir())
    serve(monkeypatch, zipped() + b"more")
    with pytest.raises(DataError, match="sends more than"):
        locate(remote(zipped()), ("u.data",), tmp_path, True)


def test_a_set_that_may_change_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(monkeypatch, zipped())
    locate(remote(b"old" * 500, final=False), ("u.data",), tmp_path, True)
    assert "a newer edition" in " ".join(capsys.readouterr().err.split())


def test_million_set_without_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ratings = gzip.compress(b"user_id,movie_id,rating\n1,1,5\n1,48,4\n")
    files = {
        "ratings_no_timestamp.csv.gz": ratings,
        "users.dat": b"1::F::2::3::01234\n",
        "movies.dat": "1::Two: Parts (1931)::A|B\n48::Caf\xe9 (1990)::C\n".encode("latin1"),
    }
    put(tmp_path, files)
    with pytest.raises(DataError, match="has 2 rows, not 1,000,209"):
        load("movielens-1m", tmp_path)
    monkeypatch.setattr(movielens, "_1M_ROWS", 2)
    data = load("movielens-1m", tmp_path)
    assert data.schema.time is None and data.interactions.columns == ["user_id", "item_id", "rating"]
    with pytest.raises(ConfigError, match="has no time column"):
        split(data, "temporal")  # the rows are sorted by user and movie, so neither time nor order may cut them
    assert data.items is not None
    assert data.items.rows() == [("1", "Two: Parts (1931)", "1931", "A|B"), ("48", "Café (1990)", "1990", "C")]
    put(tmp_path, {"ratings.dat": b"1::1::5::1000000007\n1::48::4::1000000008\n"})
    with pytest.raises(DataError, match=r"ratings.dat .* is not the official file"):
        load("movielens-1m", tmp_path)
    content = (tmp_path / "ratings.dat").read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(movielens, "_RATINGS_DAT", blob)
    assert load("movielens-1m", tmp_path).interactions.row(1) == ("1", "48", 1000000008.0, 4.0)


def test_latest_small_has_half_stars_quotes_and_crlf(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,99,0.5,1000000007\r\n",
            "movies.csv": b'movieId,title,genres\r\n99,"Fox, A (1931)",Drama|War\r\n',
        },
    )
    data = load("movielens-latest-small", tmp_path)
    assert data.interactions.row(0) == ("1", "99", 1000000007.0, 0.5) and data.users is None
    assert data.items is not None and data.items.row(0) == ("99", "Fox, A (1931)", "1931", "Drama|War")
    assert data.schema.task("rating").range == (0.5, 5.0)


@needs_data
def test_real_100k_keeps_the_order_of_the_file() -> None:
    data = load("movielens-100k", REAL)
    assert data.users is not None and data.items is not None
    assert (data.interactions.height, data.users.height, data.items.height) == (100_000, 943, 1682)
    lines = Archive(Path(REAL or "") / "ml-100k/ml-100k.zip").read("u.data").decode().splitlines()
    assert data.interactions["user_id"].to_list() == [line.split("\t")[0] for line in lines]
    assert data.interactions["user_id"].n_unique() == 943 and data.interactions["item_id"].n_unique() == 1682
    assert data.items.row(266) == ("267", "unknown", None, "unknown")
    assert data.items.filter(data.items["title"].str.contains("�")).height == 0


@needs_data
def test_real_1m_counts() -> None:
    data = load("movielens-1m", REAL)
    assert data.users is not None and data.items is not None
    assert (data.users.height, data.items.height, data.schema.time) == (6040, 3883, None)
    counts = dict(data.interactions["rating"].value_counts().iter_rows())
    assert counts == {1: 56_174, 2: 107_557, 3: 261_197, 4: 348_971, 5: 226_310}


@needs_data
def test_real_latest_small_counts() -> None:
    data = load("movielens-latest-small", REAL)
    assert data.items is not None
    assert (data.interactions.height, data.items.height) == (100_836, 9742)
    assert data.interactions["user_id"].n_unique() == 610
