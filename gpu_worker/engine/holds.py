"""Who may still ask a model version something, though it serves no new clients: requests of ensembles under way.

Belongs to one event loop.
"""

from __future__ import annotations

import asyncio


class Holds:
    """Taken and given back by each request; `free` waits until nobody holds on."""

    def __init__(self) -> None:
        self._count = 0
        self._free: asyncio.Event | None = None

    def take(self) -> None:
        self._count += 1

    def give(self) -> None:
        self._count -= 1
        if not self._count and self._free is not None:
            self._free.set()

    async def free(self) -> None:
        """Returns at once where nobody holds on; no more must be taken afterwards."""
        if self._count:
            self._free = asyncio.Event()
            await self._free.wait()
