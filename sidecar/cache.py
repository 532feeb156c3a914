"""The content-addressed cache, shared by all sidecars of a host.

::

    <root>/blobs/<sha256>      whole files, read-only; their time is fixed, so that a write to one is noticed
    <root>/known/<identity>    sha256 that was learnt for (uri, path, size, version)
    <root>/partial/<identity>  a fetch under way, with its journal of finished ranges beside it
    <root>/locks/<identity>    held by who fetches, in this process or another

Decides whether bytes are there and are the right ones. Must never show a file before it is whole and checked, nor leave
a partial file behind where the disk is full.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import threading
from collections.abc import Iterator

from sidecar import errors, values

_BLOB_TIME_NS = 1_000_000_000 * 10**9
_LOCK_POLL_S = 0.05
_PIECE_BYTES = 4 << 20
NO_ROOM = "NoRoomOnDisk"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Cache:
    """Whole files by their sha256. All methods block and are safe from threads of several processes."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = root
        for name in ("blobs", "known", "partial", "locks"):
            (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def blob(self, sha256: str) -> pathlib.Path:
        return self._root / "blobs" / sha256

    def find(self, uri: str, file: values.SourceFile) -> str:
        """The sha256 of the file if its bytes are here, else empty."""
        sha256 = file.sha256 or self._known(identity(uri, file))
        return sha256 if _is_sha256(sha256) and self._is_whole(sha256, file.size_bytes) else ""

    def partial(self, uri: str, file: values.SourceFile) -> pathlib.Path:
        """Where an unfinished fetch keeps its bytes."""
        return self._root / "partial" / identity(uri, file)

    def commit(self, uri: str, file: values.SourceFile, sha256: str) -> None:
        """Makes the partial file, whose bytes have this sha256, a blob. Only under its lock."""
        partial = self.partial(uri, file)
        with open(partial, "rb") as whole:  # noqa: PTH123 - a descriptor to sync
            os.fchmod(whole.fileno(), 0o444)
            os.utime(whole.fileno(), ns=(_BLOB_TIME_NS, _BLOB_TIME_NS))
            os.fsync(whole.fileno())
        partial.replace(self.blob(sha256))
        known = self._root / "known" / identity(uri, file)
        written = known.with_name(f"{known.name}.{os.getpid()}.{threading.get_ident()}")
        written.write_text(sha256, encoding="ascii")
        written.replace(known)
        self.discard(uri, file)

    def discard(self, uri: str, file: values.SourceFile) -> None:
        """Removes what an unfinished fetch left."""
        partial = self.partial(uri, file)
        for leftover in self._root.joinpath("partial").glob(f"{partial.name}*"):
            leftover.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, uri: str, file: values.SourceFile, stop: threading.Event) -> Iterator[None]:
        """Only one fetches a file at a time, on the whole host; a holder that died holds nothing."""
        lock = os.open(self._root / "locks" / identity(uri, file), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(lock):
                if stop.wait(_LOCK_POLL_S):
                    raise errors.Stopped
            yield
        finally:
            os.close(lock)

    def size_bytes(self) -> int:
        """Bytes of all whole files."""
        sizes = 0
        for entry in os.scandir(self._root / "blobs"):
            with contextlib.suppress(FileNotFoundError):
                sizes += entry.stat().st_size
        return sizes

    def _known(self, name: str) -> str:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self._root / "known" / name).read_text(encoding="ascii")
        return ""

    def _is_whole(self, sha256: str, size_bytes: int) -> bool:
        blob = self.blob(sha256)
        try:
            found = blob.stat()
        except FileNotFoundError:
            return False
        if found.st_size == size_bytes and found.st_mtime_ns == _BLOB_TIME_NS:
            return True
        if found.st_size == size_bytes and digest(blob) == sha256:
            os.utime(blob, ns=(_BLOB_TIME_NS, _BLOB_TIME_NS))
            return True
        # Left where it is: another sidecar may be putting whole bytes in its place at this very moment.
        return False


def identity(uri: str, file: values.SourceFile) -> str:
    """Which bytes are meant, before their sha256 is known."""
    said = "\0".join((uri, file.path, str(file.size_bytes), file.version))
    return hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()


def digest(path: pathlib.Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reserve(descriptor: int, size_bytes: int) -> None:
    """Takes the room for a file at once, so that a full disk shows before the fetch."""
    if size_bytes:
        os.posix_fallocate(descriptor, 0, size_bytes)


@contextlib.contextmanager
def room(needed_bytes: int) -> Iterator[None]:
    """Turns a full disk into a failure that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise errors.ModelFailed(
            NO_ROOM,
            f"the model cache has no room for a file of {needed_bytes} bytes; free space on its disk",
            retryable=True,
        ) from error


def _is_sha256(word: str) -> bool:
    return len(word) == 64 and all(letter in "0123456789abcdef" for letter in word)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
