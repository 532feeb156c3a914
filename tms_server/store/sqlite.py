"""All that is particular to SQLite: the file and its lock, how connections are set up, how transactions begin and end.

The journal is a write-ahead log with ``synchronous=FULL``: what was committed is on the disk. One process at a time holds
the lock beside the file, because the writer thread is the only one that allots revisions. Nothing outside may speak
SQLite's own SQL.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pathlib
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import interfaces

from tms_server.model import errors
from tms_server.store import database, kept, session, unit

SETTING = "database_url"
READER_THREADS = 2
BUSY_TIMEOUT_MS = 5_000
"""How long a statement waits for another process, such as a backup tool, before it is refused."""


def parse(url: str) -> pathlib.Path:
    """The path of the database file; Unimplemented for other databases, InvalidField for what names no file."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise errors.InvalidField(SETTING, "send a URL such as sqlite:////var/lib/tms/tms.db") from None
    if parsed.get_backend_name() != "sqlite" or parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise errors.Unimplemented(
            f"{SETTING}: {parsed.drivername} is not supported; send sqlite:///PATH or postgresql://USER@HOST/DATABASE"
        )
    if parsed.database in (None, "", ":memory:") or parsed.database.startswith("file:") or parsed.query:
        raise errors.InvalidField(
            SETTING, "send the path of a file and no options, such as sqlite:////var/lib/tms/tms.db"
        )
    return pathlib.Path(parsed.database).absolute()


def make_private(path: pathlib.Path) -> None:
    """Makes the file and its directory readable by their owner alone: secrets of workers are inside."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


@dataclasses.dataclass(slots=True)
class Lock:
    """The right to be the only server on a database; the operating system takes it back when the process dies."""

    descriptor: int | None

    def release(self) -> None:
        """May be called again."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def lock(path: pathlib.Path) -> Lock:
    """Takes the lock beside the database; FailedPrecondition when another server holds it."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise errors.FailedPrecondition(
            f"{SETTING}: another server runs on {path}, and an SQLite database serves one at a time: "
            "stop that server, or give this one a file of its own"
        ) from None
    return Lock(descriptor)


def open_database(path: pathlib.Path, prepare: Callable[[sa.Connection], None]) -> Database:
    """Makes the file where needed and takes its lock; `prepare` sets it up."""
    make_private(path)
    held = lock(path)
    try:
        with migrating_engine(path).begin() as connection:
            prepare(connection)
    except BaseException:
        held.release()
        raise
    return Database(path, held)


class Database:
    """Implements `database.Database`: this server is the only one, so memory tells its threads what has changed."""

    shared = False
    reader_threads = READER_THREADS

    def __init__(self, path: pathlib.Path, held: Lock) -> None:
        self._path = path
        self._lock = held
        self._ledger = kept.Ledger()

    def writing_engine(self) -> sa.Engine:
        return writing_engine(self._path)

    def reading_engine(self) -> sa.Engine:
        return reading_engine(self._path)

    def book(self) -> database.Book:
        return _Book(self._ledger)

    def source(self) -> database.Source:
        return kept.OfReader(self._ledger)

    async def listen(self, _changed: Callable[[], None], _reported: Callable[[], None]) -> database.Ears:
        return _Deaf()

    def release(self) -> None:
        self._lock.release()


class _Deaf:
    """There is nobody else to hear of."""

    async def close(self) -> None:
        pass


class _Book:
    """The lock beside the file keeps everybody else out, so nothing changes between two transactions."""

    def __init__(self, ledger: kept.Ledger) -> None:
        self._ledger = ledger

    def begin(self, connection: sa.Connection, _known: kept.Kept) -> session.Revisions:
        return session.Revisions(session.ReadSession(connection).revision())

    def end(self, connection: sa.Connection, revisions: session.Revisions, touched: kept.Touched) -> None:
        if revisions.raised:
            unit.save_revision(connection, revisions)
        self._ledger.record(touched)

    def settle(self) -> None:
        self._ledger.settle()


def writing_engine(path: pathlib.Path) -> sa.Engine:
    """Connections whose transactions hold the write lock from their first statement on."""
    return _engine(path, begin="BEGIN IMMEDIATE", pragmas=("foreign_keys=ON",))


def reading_engine(path: pathlib.Path) -> sa.Engine:
    """Connections that cannot write; a transaction sees the state at its first statement."""
    return _engine(path, begin="BEGIN", pragmas=("query_only=ON",))


def migrating_engine(path: pathlib.Path) -> sa.Engine:
    """Like the writing one, without foreign keys: a table that is rebuilt must not take the rows that refer to it along."""
    return _engine(path, begin="BEGIN IMMEDIATE", pragmas=())


def _engine(path: pathlib.Path, begin: str, pragmas: tuple[str, ...]) -> sa.Engine:
    # Parameters hold secrets, and errors are logged and answered.
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)), poolclass=sa.pool.NullPool, hide_parameters=True
    )

    def set_up(connection: interfaces.DBAPIConnection, _record: Any) -> None:
        try:
            _set_up(connection, path, pragmas)
        except BaseException:
            connection.close()
            raise

    def begin_transaction(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    sa.event.listen(engine, "connect", set_up)
    sa.event.listen(engine, "begin", begin_transaction)
    return engine


def _set_up(connection: interfaces.DBAPIConnection, path: pathlib.Path, pragmas: tuple[str, ...]) -> None:
    # The driver must not begin transactions by itself: it would do so late, and never immediately.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    if cursor.fetchone() != ("wal",):
        raise errors.FailedPrecondition(f"{SETTING}: the file system of {path} cannot hold a write-ahead log")
    for pragma in ("synchronous=FULL", *pragmas):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
