"""All that is particular to PostgreSQL: the URL, how connections are set up, who may set up the schema.

Several servers may run on one database. They write one after the other (`commits`), read whenever they like, and tell one
another what they have done (`notices`). Each server has one connection that writes, a few that read and one that listens,
and no more. The URL may hold a password: it is never shown, and no message quotes it.
"""

from __future__ import annotations

import dataclasses
import functools
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
import psycopg.conninfo
import psycopg.types.string
import sqlalchemy as sa

from tms_server.model import errors
from tms_server.store import commits, database, notices

SETTING = "database_url"
SCHEMES = ("postgresql://", "postgres://")
READER_THREADS = 4
OLDEST_VERSION = 13
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 10_000
"""How long a group of changes waits for its turn among the servers."""
IDLE_TIMEOUT_MS = 15_000
"""A server that stops in the middle of a transaction loses it after so long, and the others go on."""

_SET_UP_KEY = 0x746D73
_RETRY_S = 1.0
_DEFAULTS = {
    "application_name": "tms-server",
    "client_encoding": "UTF8",
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "target_session_attrs": "read-write",
    "tcp_user_timeout": 15_000,
}
_LIMITS = (
    f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}; SET lock_timeout = {LOCK_TIMEOUT_MS}; "
    f"SET idle_in_transaction_session_timeout = {IDLE_TIMEOUT_MS}; "
    # What was acknowledged is on the disk; stricter settings of the database stay.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)


def is_one(url: str) -> bool:
    """Whether the URL names a PostgreSQL database."""
    return url.startswith(SCHEMES)


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where the database is, and all that libpq was told about the way there."""

    parameters: Mapping[str, Any] = dataclasses.field(repr=False)
    shown: str
    """For messages; without a secret."""


def parse(url: str) -> Target:
    """InvalidField for a URL that libpq does not understand. TLS and other parameters pass through to it."""
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        # The driver quotes what it does not understand, which may be the password.
        raise errors.InvalidField(
            SETTING,
            "send a URL such as postgresql://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full, "
            "in which special characters of the password are percent-encoded",
        ) from None
    shown = "{host}:{port}/{dbname}".format_map({"host": "", "port": 5432, "dbname": given.get("user", ""), **given})
    return Target({**_DEFAULTS, **given}, f"postgresql://{shown}")


def open_database(target: Target, prepare: Callable[[sa.Connection], None]) -> Database:
    """`prepare` runs in a transaction that keeps every other server from setting up the database."""
    opened = Database(target)
    try:
        with opened.writing_engine().begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SET_UP_KEY)))
            _check(connection, target)
            prepare(connection)
    except (sa.exc.OperationalError, sa.exc.ProgrammingError) as error:
        raise errors.FailedPrecondition(f"{SETTING}: {target.shown} cannot be used: {error.orig}") from error
    return opened


class Database:
    """Implements `database.Database`."""

    shared = True
    reader_threads = READER_THREADS

    def __init__(self, target: Target) -> None:
        self._target = target
        self._mark = secrets.token_hex(8)
        self._door = _Door(target)

    def writing_engine(self) -> sa.Engine:
        return _engine(self._door, psycopg.IsolationLevel.READ_COMMITTED, read_only=False)

    def reading_engine(self) -> sa.Engine:
        return _engine(self._door, psycopg.IsolationLevel.REPEATABLE_READ, read_only=True)

    def book(self) -> database.Book:
        return commits.Book(self._mark)

    def source(self) -> database.Source:
        return commits.Source()

    async def listen(self, changed: Callable[[], None], reported: Callable[[], None]) -> database.Ears:
        wakes = {commits.CHANGED: changed, commits.REPORTED: reported}
        listener = notices.Listener(functools.partial(_dial, self._target), self._mark, wakes)
        try:
            await listener.start()
        except psycopg.Error as error:
            raise errors.Unavailable(f"{SETTING}: {self._target.shown} does not answer: {error}") from error
        return listener

    def release(self) -> None:
        pass


def _check(connection: sa.Connection, target: Target) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise errors.FailedPrecondition(
            f"{SETTING}: {target.shown} has the encoding {encoding}: make a database with ENCODING 'UTF8'"
        )
    version = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one()) // 10_000
    if version < OLDEST_VERSION:
        raise errors.FailedPrecondition(
            f"{SETTING}: {target.shown} is PostgreSQL {version}: version {OLDEST_VERSION} or newer is needed"
        )


class _Door:
    """Opens connections. While the way there is blocked one thread waits for it and the others are told at once."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._closed_until = 0.0
        self._reason = ""

    def open(self, context: Any) -> psycopg.Connection[Any]:
        """psycopg.OperationalError when the database does not answer."""
        with self._lock:
            if time.monotonic() < self._closed_until:
                raise psycopg.OperationalError(self._reason)
        began = time.monotonic()
        try:
            return psycopg.connect(**self._target.parameters, context=context, autocommit=True)
        except psycopg.OperationalError as error:
            if time.monotonic() - began > _RETRY_S:
                with self._lock:
                    self._closed_until, self._reason = time.monotonic() + _RETRY_S, str(error)
            raise


async def _dial(target: Target) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(**target.parameters, autocommit=True)


def _engine(door: _Door, level: psycopg.IsolationLevel, *, read_only: bool) -> sa.Engine:
    # Parameters hold secrets, and errors are logged and answered.
    engine = sa.create_engine(
        "postgresql+psycopg://", poolclass=sa.pool.NullPool, hide_parameters=True, use_native_hstore=False
    )

    def connect(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> psycopg.Connection[Any]:
        connection = door.open(parameters.get("context"))
        try:
            _set_up(connection, level, read_only=read_only)
        except BaseException:
            connection.close()
            raise
        return connection

    sa.event.listen(engine, "do_connect", connect)
    return engine


def _set_up(connection: psycopg.Connection[Any], level: psycopg.IsolationLevel, *, read_only: bool) -> None:
    connection.adapters.register_dumper(str, _Text)
    connection.execute(_LIMITS)
    connection.set_autocommit(False)
    connection.set_isolation_level(level)
    connection.set_read_only(read_only)


class _Text(psycopg.types.string.StrDumper):
    """PostgreSQL has no place for the character NUL, which messages of other programs may hold."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\ufffd"))
