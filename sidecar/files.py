"""Reads a file:// source into a partial file of the cache.

Must never take bytes of another version: size and modification time are checked before and after.
"""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import threading
import urllib.parse
from collections.abc import Callable

from sidecar import cache, errors, paths, values

_PIECE_BYTES = 4 << 20


def read(
    uri: str, file: values.SourceFile, partial: pathlib.Path, stop: threading.Event, progress: Callable[[int], None]
) -> None:
    """Copies the file to `partial`; `progress` is told of each piece's bytes. Raises ModelFailed or Stopped."""
    try:
        source = paths.open_beneath(root(uri), file.path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.ModelFailed("SourceChanged", f"{file.path!r} is not there any more") from error
    except PermissionError as error:
        raise errors.ModelFailed("AccessDenied", f"{file.path!r} cannot be read by the sidecar") from error
    except OSError as error:
        raise _unreadable(file, error) from error
    try:
        _check(source, file)
        _copy(source, file, partial, stop, progress)
        _check(source, file)
    except BaseException:
        # There is no going on in the middle of a copy.
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(source)


def root(uri: str) -> pathlib.Path:
    """The directory that a file:// URI names."""
    path = urllib.parse.unquote(uri.removeprefix("file://").removeprefix("localhost"))
    if not path.startswith("/") or "\0" in path:
        raise errors.ModelFailed("InvalidUri", "a file:// URI must be file:///<absolute path>")
    return pathlib.Path(path)


def _check(source: int, file: values.SourceFile) -> None:
    found = os.fstat(source)
    if not stat.S_ISREG(found.st_mode):
        raise errors.ModelFailed("InvalidPath", f"{file.path!r} is not a regular file")
    if found.st_size != file.size_bytes or (file.version and str(found.st_mtime_ns) != file.version):
        raise errors.ModelFailed("SourceChanged", f"{file.path!r} changed since the lease was resolved")


def _copy(
    source: int, file: values.SourceFile, partial: pathlib.Path, stop: threading.Event, progress: Callable[[int], None]
) -> None:
    with cache.room(file.size_bytes), partial.open("wb") as target:
        cache.reserve(target.fileno(), file.size_bytes)
        while piece := _read(source, file):
            target.write(piece)
            progress(len(piece))
            if stop.is_set():
                raise errors.Stopped
    if partial.stat().st_size != file.size_bytes:
        raise errors.ModelFailed("SourceChanged", f"{file.path!r} changed while it was read")


def _read(source: int, file: values.SourceFile) -> bytes:
    try:
        return os.read(source, _PIECE_BYTES)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: values.SourceFile, error: OSError) -> errors.ModelFailed:
    """A network volume that does not answer shows so; it may come back."""
    if error.errno in {errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}:
        return errors.ModelFailed("InvalidPath", f"{file.path!r}: {os.strerror(error.errno)}")
    return errors.ModelFailed("StoreUnavailable", f"{file.path!r}: {os.strerror(error.errno or 0)}", retryable=True)
