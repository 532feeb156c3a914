"""Bytes promised to fetches under way, by the files that they are for.

Decides that a promise ends with the process that it was made to, as its file is locked by it, and that two who fetch the
same file need the room once. All functions want the budget's lock held, but `close`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping

from sidecar.cache import layout, locks


class Reservation:
    """Room for some files."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        locks.try_lock(self._descriptor)

    def add(self, sizes: Mapping[str, int]) -> None:
        """Room for these as well: bytes of the disk by identity."""
        written = "".join(f"{name} {size_bytes}\n" for name, size_bytes in sizes.items()).encode()
        os.lseek(self._descriptor, 0, os.SEEK_END)
        os.write(self._descriptor, written)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def promised(where: layout.Layout) -> dict[str, int]:
    """Bytes of the disk by identity that living sidecars have still to take; files of dead ones are removed."""
    sizes: dict[str, int] = {}
    for path in list(where.reserved().iterdir()):
        if not locks.is_held(path):
            path.unlink(missing_ok=True)
            continue
        with contextlib.suppress(FileNotFoundError):
            sizes.update(_lines(path.read_text(encoding="ascii")))
    return {name: size_bytes for name, size_bytes in sizes.items() if not is_on_disk(where, name)}


def is_on_disk(where: layout.Layout, name: str) -> bool:
    """Whether the blocks for this identity are taken already: by a fetch under way, or by the whole file."""
    if where.partial(name).exists():
        return True
    try:
        return where.blob(layout.unpacked(str(where.known(name).readlink()))).is_file()
    except OSError:
        return False


def _lines(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        name, _space, size_bytes = line.partition(" ")
        yield name, int(size_bytes)
