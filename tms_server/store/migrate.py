"""Brings a database to the schema that this server knows, or back; one at a time, whoever asks."""

from __future__ import annotations

import asyncio
import pathlib
import threading
from collections.abc import Callable

import alembic.command
import alembic.config
import alembic.migration
import alembic.script
import alembic.util
import sqlalchemy as sa

import migrations
from tms_server.model import errors
from tms_server.store import opening, sqlite

# Alembic keeps the environment of a run in module globals.
_ONE_AT_A_TIME = threading.Lock()


async def upgrade(url: str, revision: str = "head") -> None:
    """All steps in one transaction; a database that is there already has nothing to do.

    FailedPrecondition when a newer server has migrated the database, a server runs on an SQLite database, or the database
    cannot be used.
    """
    await asyncio.to_thread(_alone, url, lambda connection: bring_up(connection, revision))


async def downgrade(url: str, revision: str = "base") -> None:
    """Back to an older schema; what the older one has no place for is lost. Errors as `upgrade`."""
    await asyncio.to_thread(_alone, url, lambda connection: _bring_down(connection, revision))


async def current(url: str) -> str | None:
    """The schema that the database has; None while it has none. Errors as `upgrade`."""
    if not opening.exists(url):
        return None
    found: list[str | None] = []
    await asyncio.to_thread(_alone, url, lambda connection: found.append(_current(connection)))
    return found[0]


def head() -> str:
    """The schema that this server needs."""
    return str(alembic.script.ScriptDirectory.from_config(_config(None)).get_current_head())


def bring_up(connection: sa.Connection, revision: str = "head") -> None:
    """Inside the transaction of whoever has the database to itself."""
    try:
        with _ONE_AT_A_TIME:
            alembic.command.upgrade(_config(connection), revision)
    except alembic.util.CommandError as error:
        if (newer := _newer(connection)) is not None:
            raise errors.FailedPrecondition(newer) from error
        raise errors.FailedPrecondition(
            f"{sqlite.SETTING}: the database cannot be brought to this server's schema: {error}"
        ) from error


def check(connection: sa.Connection) -> None:
    """FailedPrecondition unless the database has the schema that this server needs."""
    has, needs = _current(connection), head()
    if has == needs:
        return
    if (newer := _newer(connection)) is not None:
        raise errors.FailedPrecondition(newer)
    raise errors.FailedPrecondition(
        f"{sqlite.SETTING}: the database has schema {has or 'none'}, this server needs {needs}: run `tms-server migrate`, "
        "or let the server do so by itself with migrate_at_start = true"
    )


def _newer(connection: sa.Connection) -> str | None:
    """A sentence with the remedy where the database has a schema that this server does not know."""
    has = _current(connection)
    known = {each.revision for each in alembic.script.ScriptDirectory.from_config(_config(None)).walk_revisions()}
    if has is None or has in known:
        return None
    return (
        f"{sqlite.SETTING}: a newer server has migrated the database to schema {has}, this one knows {head()}: run the newer "
        "server, or put back the backup of the database that was made before the upgrade"
    )


def _bring_down(connection: sa.Connection, revision: str) -> None:
    with _ONE_AT_A_TIME:
        alembic.command.downgrade(_config(connection), revision)


def _current(connection: sa.Connection) -> str | None:
    return alembic.migration.MigrationContext.configure(connection).get_current_revision()


def _alone(url: str, work: Callable[[sa.Connection], None]) -> None:
    opening.open_database(url, work).release()


def _config(connection: sa.Connection | None) -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(pathlib.Path(migrations.__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
