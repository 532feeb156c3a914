"""Hears over a connection of its own what other servers have committed.

While the connection is lost it is opened again and again, and each time it is back everybody is woken, for something may
have been missed meanwhile. It carries no data and never dies of what the database does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol

import psycopg
import structlog

from tms_server.store import commits

SILENCE_S = 5.0
"""After so long without a word the connection is tried; who has died without a goodbye is found out so."""
PAUSE_S = 1.0
"""Between attempts to come back."""

Connection = psycopg.AsyncConnection[tuple[object, ...]]

log = structlog.get_logger(__name__)


class Dial(Protocol):
    """Opens a connection in autocommit mode."""

    async def __call__(self) -> Connection: ...


class Listener:
    """Listens until it is closed. `wakes` are called by topic, on the event loop; what `mark` sent is not news."""

    def __init__(self, dial: Dial, mark: str, wakes: Mapping[str, Callable[[], None]]) -> None:
        self._dial = dial
        self._mark = mark
        self._wakes = wakes
        self._closing = asyncio.Event()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once it hears. Raises what kept it from that."""
        self._connection = await self._connect()
        self._task = asyncio.create_task(self._run(self._connection), name="store-listener")

    async def close(self) -> None:
        """May be called again."""
        self._closing.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._connection is not None:
            await self._connection.close()

    async def _run(self, connection: Connection) -> None:
        while True:
            try:
                await self._hear(connection)
            except (psycopg.Error, OSError) as error:
                log.warning("store.listener_lost", error=str(error))
            await connection.close()
            connection = self._connection = await self._come_back()
            for wake in self._wakes.values():
                wake()

    async def _hear(self, connection: Connection) -> None:
        while True:
            async for notice in connection.notifies(timeout=SILENCE_S):
                topic, _, mark = notice.payload.partition(" ")
                if mark != self._mark and topic in self._wakes:
                    self._wakes[topic]()
            async with asyncio.timeout(SILENCE_S):
                await connection.execute("SELECT 1")

    async def _come_back(self) -> Connection:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_S):
                    await self._closing.wait()
            with contextlib.suppress(psycopg.Error, OSError):
                return await self._connect()

    async def _connect(self) -> Connection:
        connection = await self._dial()
        try:
            await connection.execute(f"LISTEN {commits.CHANNEL}")
        except BaseException:
            await connection.close()
            raise
        return connection
