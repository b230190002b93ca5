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
_CONDITION = (
    "MovieLens data belong to GroupLens, University of Minnesota: for research, not for commercial use without their "
    "permission, to be cited in publications, and {share}. See the README inside the archive."
)


class Offline(DataError):  # noqa: N818 (a state of the world that callers test for, as in "skip when offline")
    """The data set is not on disk and its address cannot be reached."""


@dataclass(frozen=True, slots=True)
class Remote:
    """An archive at its official address: the folder name, size in bytes, SHA-256, and whether both are final."""

    name: str
    url: str
    size: int
    sha256: str
    share: str = "not to be passed on"
    final: bool = True

    @property
    def cap(self) -> int:
        """Most bytes that are accepted: the exact size, or four times of it where the archive may change."""
        return self.size if self.final else 4 * self.size


def locate(remote: Remote, wanted: tuple[str, ...], folder: str | Path | None, download: bool) -> Archive:
    """The archive or folder with one of the ``wanted`` files.

    Looked for in ``folder``, ``$POLYTASK_DATA`` and the cache folder, in this order, then fetched into ``folder``
    or the cache folder. :class:`Offline` when it is nowhere and cannot be fetched.
    """
    for base in _bases(folder):
        for archive in _candidates(base, remote.name):
            if any(archive.has(name) for name in wanted):
                return archive
    target = Path(folder) if folder is not None else cache_folder()
    advice = f"put {remote.name}.zip in {target} or set POLYTASK_DATA"
    if folder is not None and target.is_file():
        raise DataError(f"{folder} holds none of {', '.join(wanted)}; give the official archive, {remote.url}")
    if not download:
        raise Offline(f"{remote.name} is not on disk and downloading is off; {advice}")
    path = target / f"{remote.name}.zip"
    files.write_bytes(path, _checked(remote, _fetch(remote, advice)))
    return Archive(path)


def cache_folder() -> Path:
    """Where downloads are kept: ``polytask`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polytask"


def _bases(folder: str | Path | None) -> Iterator[Path]:
    if folder is not None:
        if not Path(folder).exists() and Path(folder).suffix == ".zip":
            raise DataError(f"no file {folder}; check the path")
        yield Path(folder)
    if environment := os.environ.get("POLYTASK_DATA"):
        yield Path(environment)
    yield cache_folder()


def _candidates(base: Path, name: str) -> Iterator[Archive]:
    if base.is_file():
        yield Archive(base)
    for path in (base, base / name):
        if path.is_dir():
            yield Archive(path)
        if (path / f"{name}.zip").is_file():
            yield Archive(path / f"{name}.zip")


def _fetch(remote: Remote, advice: str) -> bytes:
    console = Console(file=sys.stderr)
    console.print(_CONDITION.format(share=remote.share), style="dim")
    try:
        with urllib.request.urlopen(remote.url, timeout=_TIMEOUT) as response, Progress(console=console) as progress:
            bar = progress.add_task(f"{remote.name}.zip", total=remote.size)
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


def _checked(remote: Remote, content: bytes) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest == remote.sha256:
        return content
    found = f"{remote.url} has SHA-256 {digest[:12]} and {len(content):,} bytes"
    expected = f"expected {remote.sha256[:12]} and {remote.size:,}"
    if remote.final:
        raise DataError(f"{found}, {expected}: damaged or replaced on the way; nothing was kept, try again later")
    Console(file=sys.stderr).print(f"warning: {found}, {expected}: a newer edition, so numbers may differ")
    return content
