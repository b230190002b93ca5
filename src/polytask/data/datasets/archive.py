"""Named files out of a folder or a zip archive, read into memory; nothing is ever extracted."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from polytask.errors import DataError

_LARGEST = 256 << 20
_RATIO = 100


@dataclass(frozen=True, slots=True)
class Archive:
    """A folder, or a zip file that holds its files at the top or inside one folder."""

    path: Path

    def has(self, name: str) -> bool:
        """Whether a file called ``name`` is there; a damaged zip file is a :class:`DataError`."""
        if self.path.is_dir():
            return (self.path / name).is_file()
        with self._open() as archive:
            return self._member(archive, name) is not None

    def read(self, name: str) -> bytes:
        """The content of ``name``; missing, damaged or too large (over 256 MiB) is a :class:`DataError`."""
        try:
            return self._read_file(name) if self.path.is_dir() else self._read_member(name)
        except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"cannot read {name} in {self.path}: {error}; delete it and get the data again") from None

    def _read_file(self, name: str) -> bytes:
        with (self.path / name).open("rb") as stream:
            return self._capped(stream.read(_LARGEST + 1), name)

    def _read_member(self, name: str) -> bytes:
        with self._open() as archive:
            member = self._member(archive, name)
            if member is None:
                raise DataError(f"{self.path} holds no {name}; give the official archive")
            if member.file_size > _RATIO * max(member.compress_size, 1):
                raise DataError(f"{name} in {self.path} unpacks to over {_RATIO} times its size; refused")
            with archive.open(member) as stream:
                return self._capped(stream.read(_LARGEST + 1), name)

    def _capped(self, content: bytes, name: str) -> bytes:
        if len(content) > _LARGEST:
            raise DataError(f"{name} in {self.path} is larger than {_LARGEST >> 20} MiB; refused")
        return content

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{self.path} is not a complete zip file ({error}); delete it and get the archive again"
            ) from None

    @staticmethod
    def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
        found = (m for m in archive.infolist() if m.filename == name or m.filename.split("/")[1:] == [name])
        return next(found, None)
