"""Reads tar and zip archives entry by entry, for callers that trust nothing in them.

Decides which kinds of entries there may be. The libraries read what headers claim in one go; here they read through a
file that refuses to give much at once, so that a header of a gibibyte ends as a refusal and not in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import lzma
import pathlib
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

_HEADER_BYTES = 4 << 20
_PIECE_BYTES = 1 << 18
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


class _Outside(OSError):
    """The archive says that something lies where nothing can; the libraries know what to make of such."""


_BROKEN = (
    _Outside,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    struct.error,
    NotImplementedError,
    UnicodeError,
    ValueError,
    OverflowError,
    RuntimeError,
)
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")


class Refused(Exception):
    """What is wrong with the archive, as the end of a sentence that begins with its name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A plain file in an archive, to be read before the next one is asked for."""

    path: str
    size_bytes: int
    _open: Callable[[], IO[bytes]]

    def pieces(self) -> Iterator[bytes]:
        """Its bytes. Raises Refused, or OSError of the disk."""
        with _refusing_broken(), self._open() as body:
            while piece := body.read(_PIECE_BYTES):
                yield piece


def entries(packed: pathlib.Path, name: str) -> Iterator[Entry]:
    """The files in order; `name` tells the format by its ending. Raises Refused, or OSError of the disk."""
    with _refusing_broken():
        if name.endswith(".zip"):
            yield from _zip(packed)
        elif name.endswith(SUFFIXES):
            yield from _tar(packed, compressed=not name.endswith(".tar"))
        else:
            raise Refused(f"is no archive that is read; use one of {', '.join(SUFFIXES)}")


@contextlib.contextmanager
def _refusing_broken() -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise Refused(f"cannot be read ({type(error).__name__})") from error


class _Sparing(io.RawIOBase):
    """A file of which little can be had at once, and which is only read forward where it is compressed."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size if 0 <= size <= _HEADER_BYTES else _HEADER_BYTES + 1)
        if len(data) > _HEADER_BYTES:
            raise Refused(f"has a header of more than {_HEADER_BYTES} bytes")
        return data

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError) as error:
            raise _Outside from error


def _tar(packed: pathlib.Path, *, compressed: bool) -> Iterator[Entry]:
    with (
        packed.open("rb") as raw,
        gzip.GzipFile(fileobj=raw) if compressed else raw as plain,
        tarfile.TarFile(fileobj=_Sparing(plain), mode="r") as archive,
    ):
        while (member := archive.next()) is not None:
            # The library keeps all that it has seen.
            archive.members.clear()  # type: ignore[attr-defined] # the stubs lack it
            if not member.isdir():
                yield _tar_entry(archive, member)


def _tar_entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    if member.issym() or member.islnk():
        raise Refused(f"holds {member.name!r}, a link; pack what it leads to instead (tar --dereference)")
    if not member.isreg() or member.issparse():
        raise Refused(f"holds {member.name!r}, which is no plain file")

    def opened() -> IO[bytes]:
        body = archive.extractfile(member)
        assert body is not None
        return body

    return Entry(member.name.removeprefix("./"), member.size, opened)


def _zip(packed: pathlib.Path) -> Iterator[Entry]:
    with packed.open("rb") as raw, zipfile.ZipFile(_Sparing(raw)) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield _zip_entry(archive, member)


def _zip_entry(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Entry:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise Refused(f"holds {member.filename!r}, a link; pack what it leads to instead")
    if kind not in {0, stat.S_IFREG}:
        raise Refused(f"holds {member.filename!r}, which is no plain file")
    if member.flag_bits & 0x1:
        raise Refused(f"holds {member.filename!r}, which is encrypted")
    if member.compress_type not in _ZIP_METHODS:
        raise Refused(f"holds {member.filename!r}, packed in a way that is not read; store or deflate it")
    return Entry(member.filename, member.file_size, lambda: archive.open(member))
