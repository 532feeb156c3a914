"""The body of a response that comes piece by piece.

Who makes the pieces pushes them; the connection takes them when their turn has come and the client reads. Must never hold
more than its bound: who pushes beyond it is told, and gives up.
"""

from __future__ import annotations

from collections.abc import Callable

# A client that reads nothing is given this much, beside what the sockets hold.
MOST_BYTES = 16 * 2**20


class Stream:
    """Lives on one event loop; `gone` is called once, when nobody takes pieces any more, before its end or after."""

    __slots__ = ("_gone", "_pieces", "_waiting_bytes", "_wake", "begun", "ended")

    def __init__(self, gone: Callable[[], None]) -> None:
        self.begun = False
        self.ended = False
        self._gone: Callable[[], None] | None = gone
        self._wake: Callable[[], None] | None = None
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0

    def push(self, piece: bytes) -> bool:
        """False, and the piece is dropped, when too much waits or nobody takes pieces any more."""
        if self._gone is None or self.ended or self._waiting_bytes + len(piece) > MOST_BYTES:
            return False
        self._pieces.append(piece)
        self._waiting_bytes += len(piece)
        self._tell()
        return True

    def end(self, piece: bytes = b"") -> None:
        """Nothing follows `piece`, which is taken whatever waits before it."""
        if self._gone is not None and not self.ended:
            if piece:
                self._pieces.append(piece)
            self.ended = True
            self._tell()

    def attach(self, wake: Callable[[], None]) -> None:
        """`wake` is called whenever there is something to take."""
        self._wake = wake

    def take(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        self._waiting_bytes = 0
        return pieces

    def abandon(self) -> None:
        """Nobody takes pieces any more."""
        gone, self._gone = self._gone, None
        self._wake = None
        self._pieces = []
        if gone is not None:
            gone()

    def _tell(self) -> None:
        if self._wake is not None:
            self._wake()


def framed(pieces: list[bytes]) -> list[bytes]:
    """The pieces as chunks of HTTP/1.1 (RFC 9112, section 7.1)."""
    return [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]


LAST_CHUNK = b"0\r\n\r\n"
