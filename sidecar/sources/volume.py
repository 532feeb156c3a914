"""Models on a mounted file system: file:// URIs.

Must never take bytes of another version: size and modification time are checked before and after each read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
import stat
import urllib.parse
from collections.abc import Iterator

from sidecar import errors, paths, spans, values
from sidecar.sources import port

_TAKEN_AWAY = {errno.ENOENT, errno.ENOTDIR}
_NO_FILE = {errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}


class Volume:
    """A directory that the URI names."""

    def __init__(self, uri: str) -> None:
        self._root = root(uri)
        self.place = f"file://{self._root}"

    @contextlib.contextmanager
    def open(self, file: values.SourceFile, span: spans.Span) -> Iterator[port.Body]:
        source = _open(self._root, file)
        try:
            _check(source, file)
            yield _Stretch(source, file, span.start)
            _check(source, file)
        finally:
            os.close(source)

    def close(self) -> None:
        """Nothing stays open."""


def root(uri: str) -> pathlib.Path:
    """The directory that a file:// URI names."""
    path = urllib.parse.unquote(uri.removeprefix("file://").removeprefix("localhost"))
    if not path.startswith("/") or "\0" in path:
        raise errors.ModelFailed("InvalidUri", "a file:// URI must be file:///<absolute path>")
    return pathlib.Path(path)


@dataclasses.dataclass(slots=True)
class _Stretch:
    source: int
    file: values.SourceFile
    at: int

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            got = os.preadv(self.source, [buffer], self.at)
        except OSError as error:
            raise _unreadable(self.file, error) from error
        self.at += got
        return got


def _open(root: pathlib.Path, file: values.SourceFile) -> int:
    try:
        return paths.open_beneath(root, file.path)
    except OSError as error:
        raise _unreadable(file, error) from error


def _check(source: int, file: values.SourceFile) -> None:
    found = os.fstat(source)
    if not stat.S_ISREG(found.st_mode):
        raise errors.ModelFailed("InvalidPath", f"{file.path!r} is not a regular file")
    if found.st_size != file.size_bytes or (file.version and str(found.st_mtime_ns) != file.version):
        raise port.changed(file)


def _unreadable(file: values.SourceFile, error: OSError) -> errors.ModelFailed:
    """A network volume that does not answer shows so; it may come back."""
    if error.errno in _TAKEN_AWAY:
        return errors.ModelFailed("SourceChanged", f"{file.path!r} is not there any more")
    if error.errno == errno.EACCES:
        return errors.ModelFailed("AccessDenied", f"{file.path!r} cannot be read by the sidecar")
    if error.errno in _NO_FILE:
        return errors.ModelFailed("InvalidPath", f"{file.path!r}: {os.strerror(error.errno or 0)}")
    return errors.ModelFailed("StoreUnavailable", f"{file.path!r}: {os.strerror(error.errno or 0)}", retryable=True)
