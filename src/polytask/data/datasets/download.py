"""Find a public data set on disk, or fetch it from its official address: never mirrored, always checked."""

import hashlib
import os
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from polytask import files
from polytask.data.datasets.archive import Archive
from polytask.errors import DataError

_BLOCK = 1 << 16
_TIMEOUT = 10.0
_MOST = 1 << 28


class Offline(DataError):  # noqa: N818 (a state of the world that callers test for, as in "skip when offline")
    """The data set is not on disk and its address cannot be reached, or gives it to account holders only."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A data set at its official address, and the ``condition`` of its use, shown before anything is fetched.

    ``size`` in bytes and ``digest`` (``sha256:...`` or ``md5:...``) are the archive's; 0 and ``""`` stand where none
    is published, and then ``contents``, the MD5 of files inside, is checked. ``final = False``: the archive may
    change, so another digest is a warning. ``folders`` are where it may lie inside a folder of data sets (by
    default ``name``). ``account = True``: the address is a page that asks for an account, so nothing is fetched.
    """

    name: str
    url: str
    condition: str
    size: int = 0
    digest: str = ""
    contents: tuple[tuple[str, str], ...] = ()
    folders: tuple[str, ...] = ()
    final: bool = True
    account: bool = False

    @property
    def cap(self) -> int:
        """Most bytes that are accepted: the size where it is known, four times of it where it may change."""
        return (self.size if self.final else 4 * self.size) or _MOST

    @property
    def file(self) -> str:
        """What the archive is called on disk."""
        return f"{self.name}.tar.gz" if self.url.endswith(".tar.gz") else f"{self.name}.zip"


def locate(remote: Remote, wanted: tuple[str, ...], folder: str | Path | None, download: bool) -> Archive:
    """The archive or folder with one of the ``wanted`` files.

    Looked for in ``folder``, ``$POLYTASK_DATA`` and the cache folder, in this order, then fetched into ``folder``
    or the cache folder. :class:`Offline` when it is nowhere and cannot be fetched.
    """
    for base in _bases(folder):
        for archive in _candidates(base, remote):
            if archive.has(*wanted):
                return archive
    target = Path(folder) if folder is not None else cache_folder()
    if folder is not None and target.is_file():
        raise DataError(f"{folder} holds none of {', '.join(wanted)}; give the official archive, {remote.url}")
    if remote.account:
        raise Offline(
            f"{remote.name} is not on disk and cannot be fetched without an account: get it from {remote.url}, put "
            f"{wanted[0]} in {target} or set POLYTASK_DATA. {remote.condition}"
        )
    advice = f"put {remote.file} in {target} or set POLYTASK_DATA"
    if not download:
        raise Offline(f"{remote.name} is not on disk and downloading is off; {advice}")
    path = target / remote.file
    content = _fetch(remote, advice)
    _check(remote, content, path)
    files.write_bytes(path, content)
    return Archive(path)


def cache_folder() -> Path:
    """Where downloads are kept: ``polytask`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polytask"


def verified(archive: Archive, name: str, md5: str, url: str) -> bytes:
    """The content of ``name``; another MD5 than that of the official file is a :class:`DataError`."""
    content = archive.read(name)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found == md5:
        return content
    raise DataError(
        f"{name} in {archive.path} is not the official file: its MD5 is {found[:12]}, not {md5[:12]}; damaged or "
        f"altered, get {url}"
    )


def _bases(folder: str | Path | None) -> Iterator[Path]:
    if folder is not None:
        if not Path(folder).exists() and Path(folder).suffix in (".zip", ".gz"):
            raise DataError(f"no file {folder}; check the path")
        yield Path(folder)
    if environment := os.environ.get("POLYTASK_DATA"):
        yield Path(environment)
    yield cache_folder()


def _candidates(base: Path, remote: Remote) -> Iterator[Archive]:
    if base.is_file():
        yield Archive(base)
    for path in (base, *(base / folder for folder in remote.folders or (remote.name,))):
        if path.is_dir():
            yield Archive(path)
        for name in dict.fromkeys((remote.file, remote.url.rsplit("/", 1)[-1])):
            if name.endswith((".zip", ".tar.gz")) and (path / name).is_file():
                yield Archive(path / name)


def _fetch(remote: Remote, advice: str) -> bytes:
    console = Console(file=sys.stderr)
    console.print(remote.condition, style="dim", markup=False)
    try:
        with urllib.request.urlopen(remote.url, timeout=_TIMEOUT) as response, Progress(console=console) as progress:
            bar = progress.add_task(remote.file, total=remote.size or None)
            content = bytearray()
            while block := response.read(_BLOCK):
                content += block
                progress.advance(bar, len(block))
                if len(content) > remote.cap:
                    raise DataError(f"{remote.url} sends more than {remote.cap:,} bytes; refused; {advice}")
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", error)
        reason = getattr(cause, "strerror", None) or str(cause) or type(error).__name__
        raise Offline(f"cannot download {remote.url}: {reason}; {advice}") from None
    return bytes(content)


def _check(remote: Remote, content: bytes, path: Path) -> None:
    for name, md5 in remote.contents:
        verified(Archive(path, content), name, md5, remote.url)
    if not remote.digest:
        return
    kind, expected = remote.digest.split(":")
    digest = hashlib.new(kind, content, usedforsecurity=False).hexdigest()
    if digest == expected:
        return
    names = {"sha256": "SHA-256", "md5": "MD5"}
    found = f"{remote.url} has {names[kind]} {digest[:12]} and {len(content):,} bytes"
    right = f"expected {expected[:12]}" + (f" and {remote.size:,}" if remote.size else "")
    if remote.final:
        raise DataError(f"{found}, {right}: damaged or replaced on the way; nothing was kept, try again later")
    Console(file=sys.stderr).print(f"warning: {found}, {right}: a newer edition, so numbers may differ")
