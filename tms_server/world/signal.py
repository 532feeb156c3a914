"""Tells those who wait that something changed; says never what, so that nobody can rely on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tms_server.model import errors


class Signal:
    """A level: whoever was busy sees many changes as one. Of one event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def count(self) -> int:
        """Take it before looking at the world, and wait from it afterwards: then no change is missed."""
        return self._count

    def notify(self) -> None:
        """Wakes all who wait."""
        self._count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Ends all waits, now and later, with Unavailable."""
        self._closed = True
        self.notify()

    async def after(self, count: int) -> None:
        """Returns once the count is no longer that one; Unavailable once closed."""
        while not self._closed and self._count == count:
            await self._changed.wait()
        if self._closed:
            raise errors.Unavailable("the server is stopping")


async def any_after(signals: Iterable[Signal], counts: Iterable[int]) -> None:
    """Returns once any of the signals is past its count; Unavailable once one is closed."""
    waits = [asyncio.ensure_future(each.after(count)) for each, count in zip(signals, counts, strict=True)]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
    finally:
        for each in waits:
            each.cancel()
