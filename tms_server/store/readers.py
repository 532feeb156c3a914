"""The threads that read, each with a connection of its own. A reader sees one snapshot and can never write."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import sqlalchemy as sa

from tms_server.store import calls, database, unit

ATTEMPTS = 2
"""A connection that has broken while nobody used it is found out by the first who does."""


class Readers:
    """A small pool of reading threads."""

    def __init__(
        self,
        base: database.Database,
        loop: asyncio.AbstractEventLoop,
        count: int,
        queue_limit: int,
    ) -> None:
        self._engine = base.reading_engine()
        self._source = base.source
        self._loop = loop
        self._inbox = calls.Inbox(queue_limit)
        self._threads = [
            threading.Thread(target=self._serve, name=f"store-reader-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: calls.Call[Any]) -> None:
        """ResourceExhausted when too many wait, Unavailable after `close`."""
        self._inbox.put(call)

    def close(self) -> None:
        """Takes no more; `join` waits until what was taken is done."""
        self._inbox.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        desk = _Desk(self._engine, self._source())
        while taken := self._inbox.take(1):
            (call,) = taken
            if call.future.cancelled():
                continue
            desk.answer(call)
            calls.post(self._loop, taken)
        desk.close()


class _Desk:
    """One thread's connection, and what the thread keeps."""

    def __init__(self, engine: sa.Engine, source: database.Source) -> None:
        self._engine = engine
        self._source = source
        self._connection: sa.Connection | None = None

    def answer(self, call: calls.Call[Any]) -> None:
        for _ in range(ATTEMPTS):
            try:
                self._connection = self._connection or self._engine.connect()
                self._read(self._connection, call)
            except BaseException as error:  # noqa: BLE001 - whatever the work raises belongs to its caller
                call.fail(calls.answer_to(error))
                if self._connection is None or not calls.passing(self._connection, error):
                    return
                self.close()
            else:
                return

    def close(self) -> None:
        calls.drop(self._connection)
        self._connection = None

    def _read(self, connection: sa.Connection, call: calls.Call[Any]) -> None:
        self._source.begin()
        with connection.begin():
            reader = unit.SqlReader(connection, self._source)
            call.succeed(call.work(reader))
            reader.end()
