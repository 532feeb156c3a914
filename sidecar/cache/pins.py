"""What living sidecars of a node need kept.

Decides that a pin lives as long as the process that set it: its file is locked by that process. What a worker holds is
kept by its link as well, for to give it up would free nothing. All functions want the budget's lock held.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Collection

from sidecar.cache import locks


class Pins:
    """The pins of one sidecar: identities of files that are meant, and sha256s."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._descriptor = -1
        self._words: frozenset[str] = frozenset()

    def set(self, words: Collection[str]) -> None:
        """Exactly these from now on."""
        if self._descriptor >= 0 and self._words == frozenset(words):
            return
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            locks.try_lock(self._descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, "".join(f"{word}\n" for word in words).encode(), 0)
        self._words = frozenset(words)

    def add(self, words: Collection[str]) -> None:
        """These as well."""
        self.set(self._words | frozenset(words))

    def close(self) -> None:
        """Ends them."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._words = frozenset()
            self._path.unlink(missing_ok=True)


def living(directory: pathlib.Path) -> set[str]:
    """What all living sidecars pinned; files of dead ones are removed."""
    words: set[str] = set()
    for path in list(directory.iterdir()):
        if locks.is_held(path):
            with contextlib.suppress(FileNotFoundError):
                words.update(path.read_text(encoding="ascii").split())
        else:
            path.unlink(missing_ok=True)
    return words
