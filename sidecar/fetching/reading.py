"""Reads stretches of a file from its store to their place on the disk.

Decides how a cut stretch goes on: at the byte where it ended. Holds one small buffer a thread, never a whole stretch.
Must never write outside of the stretch, whatever a store sends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from sidecar import errors, spans, values
from sidecar.cache import partial
from sidecar.fetching import progress, retry
from sidecar.sources import port

SPAN_BYTES = 8 << 20
_PIECE_BYTES = 1 << 18
_WINDOW_S, _WINDOW_BYTES = 30.0, 1 << 16


class Reader:
    """Reads the files of one model. Safe in threads."""

    def __init__(
        self,
        source: port.Source,
        slot: Callable[[], AbstractContextManager[None]],
        retries: retry.Retries,
        told: progress.Progress,
        stop: threading.Event,
    ) -> None:
        self._source, self._slot, self._retries, self._told, self._stop = source, slot, retries, told, stop

    def read(self, file: values.SourceFile, into: partial.Partial, span: spans.Span) -> None:
        """Brings the span. Raises ModelFailed, Stopped, Unranged, or OSError of the disk."""
        here = _Here(span.start)

        def once() -> None:
            if self._stop.is_set():
                raise errors.Stopped
            begun = here.at
            with self._slot(), self._source.open(file, spans.Span(begun, span.end)) as body:
                try:
                    self._pour(body, into.descriptor, here, span.end)
                finally:
                    into.note(spans.Span(begun, here.at))
                _check_end(body, file, here.at)

        self._retries.run(once, lambda: here.at)

    def read_whole(self, file: values.SourceFile, into: partial.Partial) -> None:
        """Of a store that knows no ranges: in one go, and from the beginning at each try."""
        for _ in range(_WHOLE_TRIES):
            self._told.found(-sum(each.size_bytes for each in into.here()))
            into.restart()
            # A stretch that was cut cannot go on and ends as Unranged.
            with contextlib.suppress(port.Unranged):
                return self.read(file, into, spans.Span(0, file.size_bytes))
        raise errors.ModelFailed(
            "StoreUnavailable", f"the store gives {file.path!r} only whole and cut each try short", retryable=True
        )

    def _pour(self, body: port.Body, descriptor: int, here: _Here, end: int) -> None:
        buffer = memoryview(bytearray(min(_PIECE_BYTES, max(end - here.at, 1))))
        pace = _Pace()
        while here.at < end:
            if self._stop.is_set():
                raise errors.Stopped
            got = body.readinto(buffer[: min(len(buffer), end - here.at)])
            if not got or pace.is_too_slow(got):
                raise _cut("sends too slowly" if got else "ended an answer early")
            write(descriptor, buffer[:got], here.at)
            here.at += got
            self._told.add(got)


@dataclasses.dataclass(slots=True)
class _Here:
    """How far a stretch is, across its tries."""

    at: int


def _check_end(body: port.Body, file: values.SourceFile, at: int) -> None:
    """A store may send more than the file has."""
    if at == file.size_bytes and body.readinto(memoryview(bytearray(1))):
        raise port.changed(file)


def _cut(how: str) -> errors.ModelFailed:
    return errors.ModelFailed("StoreUnavailable", f"the store {how}", retryable=True)


_WHOLE_TRIES = 3


def write(descriptor: int, piece: memoryview, at: int) -> None:
    """All of the piece at its place."""
    while piece:
        written = os.pwrite(descriptor, piece, at)
        piece, at = piece[written:], at + written


class _Pace:
    """Sees a store that sends just enough never to be silent."""

    def __init__(self) -> None:
        self._since_s, self._bytes = time.monotonic(), 0

    def is_too_slow(self, more_bytes: int) -> bool:
        self._bytes += more_bytes
        now_s = time.monotonic()
        if now_s - self._since_s < _WINDOW_S:
            return False
        slow = self._bytes < _WINDOW_BYTES
        self._since_s, self._bytes = now_s, 0
        return slow
