"""Named files out of a folder or an archive, read into memory; nothing is ever extracted."""

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from polytask.errors import DataError

_LARGEST = 1 << 30
_RATIO = 100
_BLOCK = 1 << 20
_TAR = (".tar.gz", ".tgz")
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Archive:
    """A folder, a zip file, or a tar.gz file; a tar.gz file inside a zip file is looked into as well.

    A file is named without the folders around it, and ``x`` also stands for ``x.gz``, which is then unpacked.
    ``content`` holds the bytes of an archive that is not written to ``path`` yet.
    """

    path: Path
    content: bytes | None = None

    def names(self) -> frozenset[str]:
        """The names of all files; a damaged archive is a :class:`DataError`."""
        try:
            return frozenset(member.name for member in self._members())
        except _DAMAGE as error:
            kind = "tar.gz" if self._is_tar else "zip"
            raise DataError(
                f"{self.path} is not a complete {kind} file ({error}); delete it and get the archive again"
            ) from None

    def has(self, *names: str) -> bool:
        """Whether one of the files ``names`` is there; a damaged archive is a :class:`DataError`."""
        known = self.names()
        return any(not known.isdisjoint(_stored(name)) for name in names)

    def read(self, name: str) -> bytes:
        """The content of ``name``; missing, damaged or too large (over 1 GiB) is a :class:`DataError`."""
        try:
            for member in self._members():
                if member.name in _stored(name):
                    content = member.content(self.path)
                    return content if member.name == name else _unzipped(content, member.name, self.path)
        except _DAMAGE as error:
            raise DataError(f"cannot read {name} in {self.path}: {error}; delete it and get the data again") from None
        raise DataError(f"{self.path} holds no {name}; give the official archive")

    @property
    def _is_tar(self) -> bool:
        return self.path.name.endswith(_TAR)

    def _members(self) -> Iterator["_Member"]:
        if self.content is None and self.path.is_dir():
            yield from _in_folder(self.path)
            return
        with self.path.open("rb") if self.content is None else io.BytesIO(self.content) as stream:
            yield from _in_tar(stream, self.path) if self._is_tar else _in_zip(stream, self.path)


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of an archive, ``size`` bytes that take ``packed`` bytes there."""

    name: str
    size: int
    packed: int
    open: Callable[[], IO[bytes]]

    def content(self, path: Path) -> bytes:
        """All of it, unless it is packed too tightly or too large."""
        if self.size > _RATIO * max(self.packed, 1):
            raise _too_tight(self.name, path)
        with self.open() as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise DataError(f"{self.name} in {path} is larger than {_LARGEST >> 20} MiB; refused: give a part of it")
        return content


def _stored(name: str) -> tuple[str, str]:
    return name, f"{name}.gz"


def _too_tight(name: str, path: Path) -> DataError:
    return DataError(f"{name} in {path} unpacks to over {_RATIO} times its size; refused")


def _in_folder(folder: Path) -> Iterator[_Member]:
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        size = path.stat().st_size
        yield _Member(path.name, size, size, partial(_binary, path))


def _in_zip(stream: IO[bytes], path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(stream) as archive:
        for info in (i for i in archive.infolist() if not i.is_dir()):
            name = PurePosixPath(info.filename).name
            member = _Member(name, info.file_size, info.compress_size, partial(archive.open, info))
            yield member
            if name.endswith(_TAR):
                yield from _in_tar(io.BytesIO(member.content(path)), path)


def _in_tar(stream: IO[bytes], path: Path) -> Iterator[_Member]:
    """The files of a tar.gz stream, in its order: each must be read before the next is asked for."""
    most = _RATIO * stream.seek(0, io.SEEK_END) + tarfile.RECORDSIZE
    stream.seek(0)
    with gzip.open(stream) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for info in archive:
            if info.offset_data + info.size > most:
                raise _too_tight(info.name, path)
            if info.isfile() and (inner := archive.extractfile(info)) is not None:
                yield _Member(PurePosixPath(info.name).name, info.size, info.size, partial(_itself, inner))
        while unpacked.read(_BLOCK):  # gzip compares its checksum at the end, which tarfile does not reach
            if unpacked.tell() > most:
                raise _too_tight(path.name, path)


def _binary(path: Path) -> IO[bytes]:
    return path.open("rb")


def _itself(stream: IO[bytes]) -> IO[bytes]:
    return stream


def _unzipped(content: bytes, name: str, path: Path) -> bytes:
    most = min(_LARGEST, _RATIO * len(content))
    with gzip.open(io.BytesIO(content)) as stream:
        unpacked = stream.read(most + 1)
    if len(unpacked) > most:
        raise _too_tight(name, path)
    return unpacked
