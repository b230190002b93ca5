"""The only writer of files: whole files appear at once or not at all, and can be proved intact.

A file is written beside its final name, flushed to the disk, renamed, and its folder flushed too, so a
kill or a power cut leaves the old file or the new one. A folder of several files gets a manifest, written
last, with the size and SHA-256 of each: weight formats do not notice a flipped bit.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polytask.errors import StateError

MANIFEST = "manifest.json"
_BLOCK = 1 << 20


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents; a :class:`StateError` says which folder cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"cannot create folder {path}: {_reason(error)}; choose another with --folder") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise StateError(f"cannot write in folder {path}: permission denied; choose another with --folder")
    return path


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, whole or not at all."""
    write_with(path, lambda temporary: _write_synced(temporary, content))


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as strict JSON (no NaN, no infinity)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise StateError(f"cannot write {path}: {_reason(error)}; free space or choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(path: Path, fill: Callable[[Path], Mapping[str, Any] | None]) -> None:
    """Let ``fill`` write files into a temporary folder, add the manifest, and rename it to ``path``.

    What ``fill`` returns stands in the manifest beside the ``files``. What was at ``path`` before is gone: where
    somebody else named it, ask :func:`require_replaceable` first.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        more = fill(temporary) or {}
        for file in temporary.iterdir():
            _sync(file)
        files = {f.name: {"size": f.stat().st_size, "sha256": sha256(f)} for f in sorted(temporary.iterdir())}
        _write_synced(temporary / MANIFEST, json.dumps({**more, "files": files}, indent=1).encode())
        mode = (temporary / MANIFEST).stat().st_mode
        for file in temporary.iterdir():
            file.chmod(mode)  # a library may write for its owner alone, where the system's rule is another
        _sync(temporary)
        old = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StateError(f"cannot write {path}: {_reason(error)}; free space or choose another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_replaceable(path: Path) -> None:
    """Refuse, with a :class:`StateError`, a folder that holds anything but what its own manifest lists."""
    if not path.is_dir():
        return
    try:
        listed = {MANIFEST, *json.loads((path / MANIFEST).read_text("utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        listed = set()
    if others := sorted(p.name for p in path.iterdir() if p.name not in listed):
        raise StateError(f"{path} holds {others[0]!r}, which would be lost; name a new folder, or empty this one")


def verify_folder(path: Path) -> dict[str, Any]:
    """Compare every file of ``path`` with the manifest, and return it; :class:`StateError` names what differs."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text("utf-8"))
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
        if not expected:
            raise ValueError("an empty manifest proves nothing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StateError(f"{path} has no readable {MANIFEST}: it was never finished; delete it") from None
    for name, (size, digest) in expected.items():
        file = safe_path(path, name)
        if not file.is_file() or (path / name).is_symlink() or file.stat().st_size != size:
            raise StateError(f"{file} is missing or has another size than its manifest says; restore or delete {path}")
        if (found := sha256(file)) != digest:
            raise StateError(
                f"{file} is damaged: SHA-256 {found[:12]}, manifest says {digest[:12]}; restore or delete {path}"
            )
    return manifest


def sha256(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def safe_path(root: Path, name: str) -> Path:
    """``root / name``, refused when it would leave ``root``."""
    plain = "\0" not in name and "\\" not in name and name.isprintable()
    if not plain or not (path := (root / name).resolve()).is_relative_to(root.resolve()):
        raise StateError(f"{name!r} points outside {root}; refused")
    return path


def folder_name(text: str) -> str:
    """``text`` as the name of one folder: letters, digits and ``-_.`` stay, at most 100 of them."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in text)[:100]
    return plain if plain.strip(".") else "-"


def append_line(path: Path, value: Any) -> None:
    """Append ``value`` to ``path`` as one line of strict JSON."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(value, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[Any]:
    """Every complete JSON line of ``path``; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def write_lines(path: Path, values: list[Any]) -> None:
    """Replace ``path`` by ``values``, one line of strict JSON each."""
    write_text(path, "".join(json.dumps(v, allow_nan=False) + "\n" for v in values))


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for one writer; a second is told the holder's process and host.

    The system frees the lock when its holder dies; what a killed holder had half-written here is removed.
    """
    make_folder(folder)
    with (folder / ".lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise StateError(f"{folder} is in use by {holder}; wait for it or choose another folder") from None
        stream.seek(0)
        stream.truncate()
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        for rest in folder.glob(".*.tmp"):
            shutil.rmtree(rest) if rest.is_dir() and not rest.is_symlink() else rest.unlink()
        yield


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
