"""One look-up for all who ask for the same at the same time.

Never answers with what was looked up before the question: whoever comes while a look-up runs shares the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Shared(Generic[K, V]):
    """Of one event loop. For each key one look-up runs and one more waits to begin, at most."""

    def __init__(self, look_up: Callable[[K], Awaitable[V]]) -> None:
        self._look_up = look_up
        self._running: dict[K, asyncio.Task[V]] = {}
        self._next: dict[K, asyncio.Task[V]] = {}

    async def of(self, key: K) -> V:
        """What a look-up finds, or raises, that begins from now on. A caller that gives up takes it from nobody else."""
        shared = self._next.get(key)
        if shared is None:
            shared = self._next[key] = asyncio.create_task(self._begin(key, self._running.get(key)))
            shared.add_done_callback(_heard)
        return await asyncio.shield(shared)

    async def _begin(self, key: K, before: asyncio.Task[V] | None) -> V:
        if before is not None:
            await asyncio.wait((before,))
        mine = self._running[key] = self._next.pop(key)
        try:
            return await self._look_up(key)
        finally:
            if self._running.get(key) is mine:
                del self._running[key]


def _heard(shared: asyncio.Task[V]) -> None:
    """All who asked may have given up: a failure then concerns nobody."""
    if not shared.cancelled():
        shared.exception()
