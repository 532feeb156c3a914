"""What the cache takes of its disk, and what the disk says when it is full.

Counts blocks that are really taken, not lengths of files. Must never report a full disk as anything else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from sidecar import errors

BLOCK_BYTES = 4096
_SECTOR_BYTES = 512
NO_ROOM = "NoRoomOnDisk"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def scan(directory: pathlib.Path) -> Iterator[tuple[str, os.stat_result]]:
    """Names and facts of the files in a directory; what goes meanwhile is left out."""
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False)


def taken_bytes(found: os.stat_result) -> int:
    """Bytes of the disk that a file takes."""
    return found.st_blocks * _SECTOR_BYTES


def rounded(size_bytes: int) -> int:
    """What a file of this length will take."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def free_bytes(directory: pathlib.Path) -> int:
    """What an ordinary user may still write to the disk."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def reserve(descriptor: int, size_bytes: int) -> None:
    """Takes the blocks of a file at once, so that a full disk shows before the fetch."""
    if size_bytes:
        os.posix_fallocate(descriptor, 0, size_bytes)


def sync_directory(directory: pathlib.Path) -> None:
    """Names that were made in it survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
