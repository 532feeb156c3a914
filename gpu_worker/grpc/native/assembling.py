"""Pieces of a request's body to messages (gRPC over HTTP/2, "Length-Prefixed-Message"). Pure but for the bytes it books.

What is kept of a message until it is whole is booked; whoever gets it whole books it on. Must never keep more for a
piece than a little above its size.
"""

from __future__ import annotations

from gpu_worker.engine import border
from gpu_worker.wire import datatypes
from gpu_worker.wire import intake as wire_intake

PREFIX_BYTES = 5
_SMALL_BYTES = 2**10


class Assembler:
    """Of one call."""

    __slots__ = ("_compressed", "_held_bytes", "_intake", "_left", "_most_bytes", "_parts", "_prefix")

    def __init__(self, intake: wire_intake.Intake, most_bytes: int) -> None:
        self._intake = intake
        self._most_bytes = most_bytes
        self._prefix = bytearray()
        self._left = -1
        self._compressed = False
        self._parts: list[border.Buffer] = []
        self._held_bytes = 0

    @property
    def incomplete(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._prefix) or self._left >= 0

    def grew(self, piece: border.Buffer) -> bool:
        """`add` of a piece in the midst of a message, without its further work; False for any other, and nothing is done."""
        size_bytes = len(piece)
        if not _SMALL_BYTES <= size_bytes < self._left or not self._intake.hold(size_bytes):
            return False
        self._held_bytes += size_bytes
        self._left -= size_bytes
        self._parts.append(piece)
        return True

    def add(self, piece: border.Buffer) -> list[tuple[bool, border.Buffer]]:
        """The messages that `piece` completes, and whether they are compressed.

        Raises InferenceError: invalid argument for a bad prefix, unavailable where there is no room.
        """
        view = memoryview(piece)
        found = []
        at, end = 0, len(view)
        while at < end or not self._left:
            if self._left < 0:
                at = self._read_prefix(view, at)
                continue
            part = view[at : at + self._left]
            self._keep(part)
            at += len(part)
            self._left -= len(part)
            if not self._left:
                found.append(self._finish())
        self._book(found, len(piece))
        return found

    def close(self) -> None:
        """Nothing more comes, nothing is kept."""
        self._intake.let_go(self._held_bytes)
        self._held_bytes = 0
        self._parts = []

    def _book(self, found: list[tuple[bool, border.Buffer]], size_bytes: int) -> None:
        if found:
            self._intake.let_go(self._held_bytes)
            self._held_bytes, size_bytes = 0, sum(map(len, self._parts))
        if not self._intake.hold(size_bytes):
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, wire_intake.FULL)
        self._held_bytes += size_bytes

    def _read_prefix(self, view: memoryview, at: int) -> int:
        part = view[at : at + PREFIX_BYTES - len(self._prefix)]
        self._prefix += part
        if len(self._prefix) == PREFIX_BYTES:
            if self._prefix[0] > 1:
                raise datatypes.refused(f"a message's compressed flag must be 0 or 1, got {self._prefix[0]}")
            self._compressed = bool(self._prefix[0])
            self._left = int.from_bytes(self._prefix[1:])
            self._prefix.clear()
            if self._left > self._most_bytes:
                raise TooLarge(self._left, self._most_bytes)
        return at + len(part)

    def _keep(self, part: memoryview) -> None:
        """Many small pieces become one: each would cost far more than its bytes."""
        if len(part) >= _SMALL_BYTES:
            self._parts.append(part)
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += part
        elif part:
            self._parts.append(bytearray(part))

    def _finish(self) -> tuple[bool, border.Buffer]:
        parts, self._parts = self._parts, []
        self._left = -1
        message = parts[0] if len(parts) == 1 else b"".join(parts)
        return self._compressed, message


class TooLarge(Exception):
    """A message says that it is larger than what is taken."""

    def __init__(self, size_bytes: int, most_bytes: int) -> None:
        super().__init__(f"Received message larger than max ({size_bytes} vs. {most_bytes})")
