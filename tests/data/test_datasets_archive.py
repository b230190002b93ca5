import gzip
import hashlib
import io
import tarfile
import urllib.error
import zipfile
from pathlib import Path

import pytest

from polytask.data.datasets import archive as archives
from polytask.data.datasets import download, load
from polytask.data.datasets.archive import Archive
from polytask.data.datasets.download import Offline, Remote, locate, verified
from polytask.errors import DataError

FILES = {"one.csv": b"a,b\n1,2\n", "two.csv": b"a,b\n3,4\n5,6\n"}
ADDRESS = "https://example.org/x.zip"


@pytest.fixture(autouse=True)
def apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data on disk and no net, unless a test gives them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("POLYTASK_DATA", raising=False)
    monkeypatch.setattr(download.urllib.request, "urlopen", unreachable)


def unreachable(url: str, timeout: float) -> io.BytesIO:
    raise urllib.error.URLError(OSError(-2, "name not known"))


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(content))


def tarred(files: dict[str, bytes] = FILES, prefix: str = "set/data/") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def written(folder: Path, name: str, content: bytes) -> Archive:
    (folder / name).write_bytes(content)
    return Archive(folder / name)


def layouts(folder: Path) -> dict[str, Archive]:
    (folder / "plain").mkdir()
    (folder / "packed").mkdir()
    for name, content in FILES.items():
        (folder / "plain" / name).write_bytes(content)
        (folder / "packed" / f"{name}.gz").write_bytes(gzip.compress(content))
    return {
        "folder": Archive(folder / "plain"),
        "folder of .gz": Archive(folder / "packed"),
        "zip": written(folder, "a.zip", zipped({f"set/{n}": c for n, c in FILES.items()})),
        "zip of .gz": written(folder, "b.zip", zipped({f"{n}.gz": gzip.compress(c) for n, c in FILES.items()})),
        "tar.gz": written(folder, "c.tar.gz", tarred()),
        "tar.gz in a zip": written(folder, "d.zip", zipped({"readme": b"", "x/set.tar.gz": tarred()})),
        "not written yet": Archive(folder / "none.zip", zipped(FILES)),
    }


def test_every_layout_holds_the_same_files_and_extracts_none(tmp_path: Path) -> None:
    found = layouts(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for name, archive in found.items():
        assert {n: archive.read(n) for n in ("two.csv", "one.csv")} == FILES, name
        assert archive.has("none", "two.csv") and not archive.has("none", "data"), name
        with pytest.raises(DataError, match=r"holds no three\.csv"):
            archive.read("three.csv")
    assert sorted(tmp_path.rglob("*")) == before


def test_only_regular_files_of_a_tar_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("secret")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("../../up"))
    found = written(tmp_path, "x.tar.gz", buffer.getvalue())
    assert found.names() == {"up"} and found.read("up") == b""


NOISE = {"noise": bytes(hashlib.sha256(b"%d" % k).digest()[0] for k in range(4000))}


@pytest.mark.parametrize("cut", [0, 10, 60, -600, -4])
def test_a_truncated_tar_is_one_line(tmp_path: Path, cut: int) -> None:
    found = written(tmp_path, "x.tar.gz", tarred(NOISE)[:cut])
    with pytest.raises(DataError, match=r"not a complete tar\.gz file") as caught:
        found.has("noise")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", [False, True])
def test_a_flipped_bit_in_a_tar_is_found(tmp_path: Path, inside: bool) -> None:
    content = bytearray(tarred(NOISE))
    content[len(content) // 2] ^= 1
    name, stored = ("x.zip", zipped({"x.tar.gz": bytes(content)})) if inside else ("x.tar.gz", bytes(content))
    with pytest.raises(DataError, match="is not a complete"):
        written(tmp_path, name, stored).has("noise")


def test_bombs_are_refused_before_they_unpack(tmp_path: Path) -> None:
    zeros = bytes(10**6)
    bombs = {
        "zip": written(tmp_path, "a.zip", zipped({"bomb": zeros})),
        "gz": written(tmp_path, "b.zip", zipped({"bomb.gz": gzip.compress(zeros)})),
        "tar": written(tmp_path, "c.tar.gz", tarred({"bomb": zeros})),
        "tar in zip": written(tmp_path, "d.zip", zipped({"x.tar.gz": tarred({"bomb": zeros})})),
    }
    for name, archive in bombs.items():
        with pytest.raises(DataError, match="unpacks to over 100 times its size"):
            pytest.fail(f"{name}: {len(archive.read('bomb'))} bytes were read")


def test_a_file_over_the_limit_is_refused_whatever_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = layouts(tmp_path)
    monkeypatch.setattr(archives, "_LARGEST", 10)
    for name in ("folder", "zip", "tar.gz"):
        with pytest.raises(DataError, match=r"two\.csv in .* is larger than"):
            found[name].read("two.csv")
        assert found[name].read("one.csv") == FILES["one.csv"]


def remote(**given: object) -> Remote:
    fields: dict[str, object] = {"name": "x", "url": ADDRESS, "condition": "Condition: [CC] be kind."}
    return Remote(**(fields | given))  # type: ignore[arg-type]


def test_the_condition_is_shown_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []

    def served(url: str, timeout: float) -> io.BytesIO:
        shown.append(capsys.readouterr().err)
        return io.BytesIO(zipped(FILES))

    monkeypatch.setattr(download.urllib.request, "urlopen", served)
    locate(remote(), ("one.csv",), tmp_path, True)
    assert shown == ["Condition: [CC] be kind.\n"]


def test_contents_are_checked_where_the_archive_has_no_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = (("one.csv", hashlib.md5(FILES["one.csv"]).hexdigest()),)
    serve(monkeypatch, zipped(FILES | {"one.csv": b"altered"}))
    with pytest.raises(DataError, match=r"one\.csv in .* is not the official file: its MD5"):
        locate(remote(contents=right), ("one.csv",), tmp_path, True)
    serve(monkeypatch, b"no archive")
    with pytest.raises(DataError, match=r"cannot read one\.csv"):
        locate(remote(contents=right), ("one.csv",), tmp_path, True)
    assert not list(tmp_path.iterdir())
    serve(monkeypatch, zipped(FILES))
    assert locate(remote(contents=right), ("one.csv",), tmp_path, True).read("two.csv") == FILES["two.csv"]


def test_an_md5_and_a_tar_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tarred()
    given = remote(url="https://example.org/x.tar.gz", digest="md5:" + hashlib.md5(content).hexdigest())
    serve(monkeypatch, content + b"!")
    with pytest.raises(DataError, match=r"has MD5 .* expected .*: damaged or replaced"):
        locate(given, ("one.csv",), tmp_path, True)
    assert not list(tmp_path.iterdir())
    serve(monkeypatch, content)
    assert locate(given, ("one.csv",), tmp_path, True).read("one.csv") == FILES["one.csv"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar.gz"]
    monkeypatch.setattr(download.urllib.request, "urlopen", unreachable)
    assert locate(given, ("one.csv",), tmp_path, True).path == tmp_path / "x.tar.gz"


def test_an_archive_of_unknown_size_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_MOST", 20)
    serve(monkeypatch, zipped(FILES))
    with pytest.raises(DataError, match="sends more than 20 bytes"):
        locate(remote(), ("one.csv",), tmp_path, True)


def test_an_archive_under_its_official_name_is_found(tmp_path: Path) -> None:
    given = remote(url="https://example.org/official+name.zip", folders=("inner",))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "official+name.zip").write_bytes(zipped(FILES))
    assert locate(given, ("one.csv",), tmp_path, False).read("one.csv") == FILES["one.csv"]


@pytest.mark.parametrize(("name", "number"), [("taobao", 649), ("aliexpress", 74690), ("ali-ccp", 408)])
def test_a_data_set_behind_an_account_is_never_fetched(
    tmp_path: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(Offline) as caught:
        load(name, tmp_path)
    text = str(caught.value)
    assert f"https://tianchi.aliyun.com/dataset/{number}" in text and "account" in text and "not commercial" in text
    assert "\n" not in text and str(tmp_path) in text


@pytest.mark.parametrize(
    ("name", "address", "condition"),
    [
        ("census", "https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip", "CC BY 4.0"),
        ("adult", "https://archive.ics.uci.edu/static/public/2/adult.zip", "CC BY 4.0"),
        ("kuairand", "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz", "CC BY-SA 4.0"),
        ("movielens-1m", "https://files.grouplens.org/datasets/movielens/ml-1m.zip", "not to be passed on"),
        ("movielens-latest-small", "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip", "same"),
    ],
)
def test_official_addresses_and_conditions(
    tmp_path: Path, name: str, address: str, condition: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Offline) as caught:
        load(name, tmp_path)
    assert str(caught.value).startswith(f"cannot download {address}: name not known; put ")
    assert condition in " ".join(capsys.readouterr().err.split())


def test_verified_is_the_content_of_the_official_file_alone(tmp_path: Path) -> None:
    found = written(tmp_path, "x.zip", zipped(FILES))
    assert verified(found, "one.csv", hashlib.md5(FILES["one.csv"]).hexdigest(), ADDRESS) == FILES["one.csv"]
    with pytest.raises(DataError, match=rf"not the official file.*get {ADDRESS}"):
        verified(found, "two.csv", hashlib.md5(FILES["one.csv"]).hexdigest(), ADDRESS)
