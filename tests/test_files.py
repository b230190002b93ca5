import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask import files
from polytask.errors import StateError


class Killed(BaseException):
    """Stands for the end of the process."""


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def some_folder(path: Path, **contents: bytes) -> Path:
    def fill(temporary: Path) -> None:
        for name, content in (contents or {"a": b"one", "b": b"two" * 100}).items():
            (temporary / name).write_bytes(content)

    files.write_folder(path, fill)
    return path


def test_what_is_written_is_there_whole(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "new" / "a", b"\x00\xff")
    files.write_text(tmp_path / "t", "é\n")
    files.write_json(tmp_path / "j", {"id": "\u202e<script>", "x": [1, 2.5, None]})
    assert tree(tmp_path / "new") == {"a": b"\x00\xff"}
    assert (tmp_path / "t").read_bytes() == "é\n".encode()
    assert json.loads((tmp_path / "j").read_text("utf-8")) == {"id": "\u202e<script>", "x": [1, 2.5, None]}
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_is_strict_and_a_refused_value_leaves_the_old_file(tmp_path: Path, value: float) -> None:
    files.write_json(tmp_path / "j", 1)
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "j", {"x": value})
    with pytest.raises(ValueError, match="JSON"):
        files.append_line(tmp_path / "lines", {"x": value})
    assert {n: c for n, c in tree(tmp_path).items() if c} == {"j": b"1\n"}


@pytest.mark.parametrize("place", ["_write_synced", "_sync", "Path.replace"])
@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")])
def test_a_write_that_fails_leaves_the_old_file(
    place: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    files.write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "replace") if place == "Path.replace" else (files, place)), raising(error))
        with pytest.raises(Killed if isinstance(error, Killed) else StateError) as caught:
            files.write_bytes(path, b"new")
    assert isinstance(error, Killed) or f"cannot write {path}: no space left on device" in str(caught.value)
    assert tree(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("place", ["_write_synced", "_sync", "sha256", "Path.rename", "fill"])
@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device"), ValueError("odd")])
def test_a_folder_that_fails_is_not_there_at_all(
    place: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if place == "fill":
            patch.setattr(Path, "write_bytes", raising(error))
        else:
            patch.setattr(*((Path, "rename") if place == "Path.rename" else (files, place)), raising(error))
        with pytest.raises(StateError if isinstance(error, OSError) else type(error)):
            some_folder(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = some_folder(tmp_path / "f", a=b"1", b=b"2")
    some_folder(path, c=b"3")
    assert set(tree(path)) == {"c", "manifest.json"}
    digest = "4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce"
    assert json.loads((path / "manifest.json").read_text()) == {"files": {"c": {"size": 1, "sha256": digest}}}
    assert not list(tmp_path.rglob("*.tmp"))
    files.verify_folder(path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def outside(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


def inside(path: Path) -> None:
    target = path.with_name("copy")
    path.rename(target)
    path.symlink_to(target.name)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to the outside": outside,
    "a link to the inside": inside,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["a", "b"])
def test_the_manifest_sees_every_damage(tmp_path: Path, name: str, damage: str) -> None:
    path = some_folder(tmp_path / "f")
    DAMAGES[damage](path / name)
    with pytest.raises(StateError) as caught:
        files.verify_folder(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "manifest",
    [None, b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"a": 3}', b'{"a": {"size": 3}}', b'{"a": null}', b"{}"],
)
def test_a_broken_manifest_is_an_error_of_ours(tmp_path: Path, manifest: bytes | None) -> None:
    path = some_folder(tmp_path / "f")
    (path / "manifest.json").unlink()
    if manifest is not None:
        (path / "manifest.json").write_bytes(manifest)
    with pytest.raises(StateError, match=r"manifest\.json"):
        files.verify_folder(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../x", "a\0b", "..\\x", "\ud800"])
def test_a_manifest_cannot_point_elsewhere(tmp_path: Path, name: str) -> None:
    path = some_folder(tmp_path / "f")
    (path / "manifest.json").write_text(json.dumps({name: {"size": 1, "sha256": "0"}}))
    with pytest.raises(StateError):
        files.verify_folder(path)


parts = st.sampled_from(["..", ".", "a", "b c", "é", "\0", "\\", "~", " ", "*", "...", "\ud800", "CON", "a" * 300])
names = st.one_of(
    st.text(max_size=30),
    st.lists(parts, max_size=6).map("/".join),
    st.lists(parts, max_size=6).map(lambda p: "/" + "/".join(p)),
)


@given(name=names)
@settings(max_examples=60)
def test_a_safe_path_never_leaves_its_root(name: str) -> None:
    root = Path("/some/root")
    try:
        found = files.safe_path(root, name)
    except StateError as error:
        assert "\n" not in str(error)
    else:
        assert found == root or root in found.parents
        assert ".." not in found.parts


def test_a_safe_path_follows_links_to_where_they_lead(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(StateError, match="outside"):
        files.safe_path(root, "link/other")
    assert files.safe_path(root, "sub/file") == root.resolve() / "sub/file"


LINES = [{"epoch": 1, "x": 0.1}, {"epoch": 2, "x": "é\n"}, {"epoch": 3}]


def logged(path: Path) -> Path:
    for line in LINES:
        files.append_line(path, line)
    return path


def test_lines_read_back(tmp_path: Path) -> None:
    assert files.read_lines(tmp_path / "none") == []
    assert files.read_lines(logged(tmp_path / "m")) == LINES


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path, cut: int) -> None:
    path = logged(tmp_path / "m")
    path.write_bytes(path.read_bytes()[:-cut])
    assert files.read_lines(path) == LINES[:2]


def test_lines_are_replaced_whole_and_appended_to(tmp_path: Path) -> None:
    path = logged(tmp_path / "m")
    files.write_lines(path, LINES[:2])
    files.append_line(path, "next")
    assert files.read_lines(path) == [*LINES[:2], "next"]


def test_a_lock_keeps_a_second_writer_out_and_is_free_afterwards(tmp_path: Path) -> None:
    with files.lock(tmp_path / "run"):
        with (
            pytest.raises(StateError, match=f"is in use by process {os.getpid()} on ") as caught,
            files.lock(tmp_path / "run"),
        ):
            pass
        assert "\n" not in str(caught.value)
        with files.lock(tmp_path / "other"):
            pass
    with files.lock(tmp_path / "run"):
        pass


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(Killed), files.lock(tmp_path):
        raise Killed
    with files.lock(tmp_path):
        pass


def test_a_killed_holder_leaves_nothing_to_clean_up(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys, polytask.files as f\nwith f.lock(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment).returncode == -9
    with files.lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(StateError, match=r"cannot create folder .*choose another"):
            files.make_folder(path)


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "long").write_bytes(b"a" * 1_000_000)
    (tmp_path / "longer").write_bytes(b"a" * (1 << 20) + b"b")
    assert files.sha256(tmp_path / "long") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    assert files.sha256(tmp_path / "longer") != files.sha256(tmp_path / "long")
