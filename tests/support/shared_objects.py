"""POSIX shared memory objects for tests, as files where Linux keeps them."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
from collections.abc import Iterator

DIRECTORY = pathlib.Path("/dev/shm")
_numbers = itertools.count()


@contextlib.contextmanager
def made(size_bytes: int) -> Iterator[pathlib.Path]:
    """A new object of zeros; its key is its name, after a slash."""
    path = DIRECTORY / f"tms_test_{os.getpid()}_{next(_numbers)}"
    path.touch()
    os.truncate(path, size_bytes)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def key(path: pathlib.Path) -> str:
    return f"/{path.name}"


def open_in(process_id: int) -> list[str]:
    """Keys of the objects that a process has open, those already unlinked included."""
    found = []
    for link in pathlib.Path(f"/proc/{process_id}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = str(link.readlink()).removesuffix(" (deleted)")
            if target.startswith(f"{DIRECTORY}/tms_test_"):
                found.append(target.removeprefix(str(DIRECTORY)))
    return found
