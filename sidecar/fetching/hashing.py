"""The sha256 of a file while it comes in pieces in any order.

Reads behind the pieces that are there from the beginning on, so that the last byte's arrival is nearly the end of the
hashing too; the bytes are still in the system's memory then.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable

from sidecar import errors, spans
from sidecar.cache import partial

_PIECE_BYTES = 1 << 20
_LOOK_S = 0.02


def of(descriptor: int, size_bytes: int) -> str:
    """sha256 of a whole file."""
    digest = hashlib.sha256()
    _feed(digest.update, descriptor, 0, size_bytes)
    return digest.hexdigest()


class Follower:
    """Hashes one file in a thread of its own, from its start until `result` or `cancel`."""

    def __init__(self, file: partial.Partial) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._cancelled = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._follow, name="sha256", daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Once the whole file is here."""
        self._thread.join()
        if self._failure:
            raise self._failure
        return self._digest.hexdigest()

    def cancel(self) -> None:
        self._cancelled.set()
        self._thread.join()

    def _follow(self) -> None:
        at = 0
        try:
            while at < self._file.size_bytes and not self._cancelled.is_set():
                end = spans.prefix(self._file.here())
                if end > at:
                    _feed(self._digest.update, self._file.descriptor, at, min(end, at + 8 * _PIECE_BYTES))
                    at = min(end, at + 8 * _PIECE_BYTES)
                else:
                    self._cancelled.wait(_LOOK_S)
        except OSError as error:
            self._failure = error


def _feed(update: Callable[[memoryview], object], descriptor: int, at: int, end: int) -> None:
    buffer = memoryview(bytearray(min(_PIECE_BYTES, max(end - at, 1))))
    while at < end:
        got = os.preadv(descriptor, [buffer[: min(len(buffer), end - at)]], at)
        if not got:
            raise errors.ModelFailed(
                "CacheUnusable", "a file of the model cache was cut while it was read", retryable=True
            )
        update(buffer[:got])
        at += got
