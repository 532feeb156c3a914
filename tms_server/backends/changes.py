"""Tells watchers that something changed; says never what, so that nobody can rely on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator


class Changes:
    """A level: watchers that were busy see many changes as one, and none is lost between `watch` and the first step."""

    def __init__(self) -> None:
        self._count = 0
        self._closed = False
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Wakes all watchers."""
        self._count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Ends all watches."""
        self._closed = True
        self.notify()

    def watch(self) -> AsyncIterator[None]:
        """Yields once for each time that something changed since the last step, or since this call."""
        return self._steps(self._count)

    async def _steps(self, seen: int) -> AsyncIterator[None]:
        while True:
            if seen == self._count and not self._closed:
                await self._changed.wait()
            if self._closed:
                return
            seen = self._count
            yield
