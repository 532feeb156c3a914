"""The threads that read, each with a connection of its own. A reader sees one snapshot and can never write."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import sqlalchemy as sa

from tms_server.store import calls, kept, unit


class Readers:
    """A small pool of reading threads."""

    def __init__(
        self,
        engine: sa.Engine,
        ledger: kept.Ledger,
        loop: asyncio.AbstractEventLoop,
        count: int,
        queue_limit: int,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
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
        connection: sa.Connection | None = None
        source = kept.OfReader(self._ledger)
        while taken := self._inbox.take(1):
            (call,) = taken
            if call.future.cancelled():
                continue
            try:
                connection = connection or self._engine.connect()
                source.begin()
                with connection.begin():
                    reader = unit.SqlReader(connection, source)
                    call.succeed(call.work(reader))
                    reader.end()
            except BaseException as error:  # noqa: BLE001 - whatever the work raises belongs to its caller
                call.fail(calls.answer_to(error))
            calls.post(self._loop, taken)
        if connection is not None:
            connection.close()
