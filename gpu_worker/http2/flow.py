"""Flow-control windows (RFC 9113 section 5.2 and 6.9). Pure.

A receiver's window shrinks with what arrives and grows again only by what was consumed: what is not taken is not sent.
"""

from __future__ import annotations

from gpu_worker.http2 import codes


class Inflow:
    """The window that this side gives; announced again in pieces of a quarter, so that updates stay few."""

    __slots__ = ("left", "owed", "quarter")

    def __init__(self, window: int) -> None:
        self.left = window
        self.owed = 0
        self.quarter = max(1, window // 4)

    def consumed(self, size: int) -> int:
        """Notes that `size` bytes were taken; returns the increment to announce now, 0 for none yet."""
        self.owed += size
        if self.owed < self.quarter:
            return 0
        increment, self.owed = self.owed, 0
        self.left += increment
        return increment


class SharedInflow(Inflow):
    """The window of a connection: its streams share it, so that some that are not taken can hold most of it."""

    __slots__ = ()

    def consumed(self, size: int) -> int:
        """As for one stream; sooner where little is left, for the peer may wait for just that."""
        self.owed += size
        if self.owed < min(self.quarter, self.left):
            return 0
        increment, self.owed = self.owed, 0
        self.left += increment
        return increment


def grown(window: int, increment: int) -> int:
    """A sender's window after WINDOW_UPDATE or a change of the initial size. OverflowError beyond 2^31-1."""
    window += increment
    if window > codes.MAX_WINDOW:
        raise OverflowError
    return window
