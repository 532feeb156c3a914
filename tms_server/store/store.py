"""The store of this server on its database: opens, hands closures to threads, wakes who subscribed, closes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from tms_server import clock
from tms_server.model import ids
from tms_server.ports import store
from tms_server.store import calls, database, migrate, opening, readers, unit, writer

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`queue_limit`: calls that wait at most, for the writer and for the readers each; more are refused.

    `migrate`: brings an older database to this server's schema; otherwise it is refused.
    """

    queue_limit: int = 4_096
    migrate: bool = True


class SqlStore:
    """Implements `store.Store`. All calls come from the event loop that opened it."""

    def __init__(self, base: database.Database, clock_: clock.Clock, options: Options) -> None:
        """Use `open`."""
        self._database = base
        self._loop = asyncio.get_running_loop()
        self._wakes: dict[object, Callable[[], None]] = {}
        self._report_wakes: dict[object, Callable[[], None]] = {}
        self._ears: database.Ears | None = None
        self._readers = readers.Readers(base, self._loop, base.reader_threads, options.queue_limit)
        self._writer = writer.Writer(base, clock_, self._loop, self._wake_all, options.queue_limit)

    @classmethod
    async def open(
        cls, url: str, clock_: clock.Clock, new_id: Callable[[], ids.InstallationId], options: Options | None = None
    ) -> SqlStore:
        """Opens the database ``sqlite:///PATH`` or ``postgresql://...``, made and migrated where needed.

        `new_id` names a new installation. Comes before serving, for it waits while somebody migrates. InvalidField or
        Unimplemented for a URL that cannot be meant; FailedPrecondition when the database cannot be used, a newer server
        has written it, or another server runs on an SQLite database.
        """
        chosen = options or Options()

        def prepare(connection: sa.Connection) -> None:
            (migrate.bring_up if chosen.migrate else migrate.check)(connection)
            unit.add_installation(connection, new_id, clock_.now())

        opened = cls(await asyncio.to_thread(opening.open_database, url, prepare), clock_, chosen)
        try:
            await opened._listen()
        except BaseException:
            await opened.close()
            raise
        return opened

    @property
    def shared(self) -> bool:
        return self._database.shared

    async def read(self, work: Callable[[store.Reader], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._readers.submit(calls.Call(work, future))
        return await future

    async def write(self, work: Callable[[store.UnitOfWork], T]) -> T:
        """A caller that is cancelled does not know whether its work was committed, unless it had not begun."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._writer.submit(calls.Call(work, future))
        return await future

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        return _add(self._wakes, wake)

    def subscribe_reports(self, wake: Callable[[], None]) -> Callable[[], None]:
        return _add(self._report_wakes, wake)

    async def close(self) -> None:
        """Refuses new calls, finishes the accepted ones, lets go of the database. May be called again."""
        self._writer.close()
        self._readers.close()
        if self._ears is not None:
            await self._ears.close()
        await asyncio.to_thread(self._release)

    async def _listen(self) -> None:
        self._ears = await self._database.listen(self._wake_all, self._wake_for_reports)

    def _release(self) -> None:
        self._readers.join()
        self._writer.join()
        self._database.release()

    def _wake_all(self) -> None:
        self._wake(self._wakes)

    def _wake_for_reports(self) -> None:
        self._wake(self._report_wakes)

    def _wake(self, wakes: dict[object, Callable[[], None]]) -> None:
        for wake in wakes.values():
            # Each in a callback of its own: one that raises must not keep the others asleep.
            self._loop.call_soon(wake)


def _add(wakes: dict[object, Callable[[], None]], wake: Callable[[], None]) -> Callable[[], None]:
    key = object()
    wakes[key] = wake
    return lambda: (wakes.pop(key, None), None)[1]
