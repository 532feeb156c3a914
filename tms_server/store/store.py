"""The store of this server on an SQLite database: opens, hands closures to threads, wakes who subscribed, closes."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from tms_server import clock
from tms_server.model import errors, ids
from tms_server.ports import store
from tms_server.store import calls, kept, migrate, readers, sqlite, unit, writer

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`queue_limit`: calls that wait at most, for the writer and for the readers each; more are refused."""

    queue_limit: int = 4_096
    reader_threads: int = 2


class SqlStore:
    """Implements `store.Store`. All calls come from the event loop that opened it."""

    def __init__(self, path: pathlib.Path, lock: sqlite.Lock, clock_: clock.Clock, options: Options) -> None:
        """Use `open`."""
        self._lock = lock
        self._loop = asyncio.get_running_loop()
        self._wakes: dict[object, Callable[[], None]] = {}
        ledger = kept.Ledger()
        self._readers = readers.Readers(
            sqlite.reading_engine(path), ledger, self._loop, options.reader_threads, options.queue_limit
        )
        self._writer = writer.Writer(
            sqlite.writing_engine(path), ledger, clock_, self._loop, self._wake_all, options.queue_limit
        )

    @classmethod
    async def open(
        cls, url: str, clock_: clock.Clock, new_id: Callable[[], ids.InstallationId], options: Options | None = None
    ) -> SqlStore:
        """Opens the database ``sqlite:///PATH``, made and migrated where needed; `new_id` names a new installation.

        Blocks while it migrates, so it comes before serving. Unimplemented for other databases; FailedPrecondition when
        another server runs on the database, a newer one has written it, or the file
        cannot be opened.
        """
        path = sqlite.parse(url)
        try:
            lock = _prepare(path, url, clock_, new_id)
        except (OSError, sa.exc.DatabaseError) as error:
            reason = error.orig if isinstance(error, sa.exc.DatabaseError) else error
            raise errors.FailedPrecondition(f"{sqlite.SETTING}: {path} cannot be opened: {reason}") from error
        return cls(path, lock, clock_, options or Options())

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
        key = object()
        self._wakes[key] = wake
        return lambda: (self._wakes.pop(key, None), None)[1]

    async def close(self) -> None:
        """Refuses new calls, finishes the accepted ones, lets go of the database. May be called again."""
        self._writer.close()
        self._readers.close()
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        self._readers.join()
        self._writer.join()
        self._lock.release()

    def _wake_all(self) -> None:
        for wake in self._wakes.values():
            # Each in a callback of its own: one that raises must not keep the others asleep.
            self._loop.call_soon(wake)


def _prepare(
    path: pathlib.Path, url: str, clock_: clock.Clock, new_id: Callable[[], ids.InstallationId]
) -> sqlite.Lock:
    """Makes and migrates the database under its lock, which stays with the caller."""
    sqlite.make_private(path)
    lock = sqlite.lock(path)
    try:
        migrate.upgrade(url)
        _install(path, new_id, clock_)
    except BaseException:
        lock.release()
        raise
    return lock


def _install(path: pathlib.Path, new_id: Callable[[], ids.InstallationId], clock_: clock.Clock) -> None:
    engine: sa.Engine = sqlite.writing_engine(path)
    with engine.begin() as connection:
        unit.add_installation(connection, new_id, clock_.now())
