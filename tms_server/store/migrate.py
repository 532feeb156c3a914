"""Brings a database to the schema that this server knows, or back. The caller holds the database's lock."""

from __future__ import annotations

import pathlib
import threading

import alembic.command
import alembic.config
import alembic.util
import sqlalchemy as sa

import migrations
from tms_server.model import errors
from tms_server.store import sqlite

# Alembic keeps the environment of a run in module globals.
_ONE_AT_A_TIME = threading.Lock()


def upgrade(url: str, revision: str = "head") -> None:
    """All steps in one transaction; FailedPrecondition when a newer server has migrated the database."""
    path = sqlite.parse(url)
    sqlite.make_private(path)
    with _ONE_AT_A_TIME, sqlite.migrating_engine(path).begin() as connection:
        try:
            alembic.command.upgrade(_config(connection), revision)
        except alembic.util.CommandError as error:
            raise errors.FailedPrecondition(
                f"{path} cannot be brought to this server's schema, a newer server may have written it: {error}"
            ) from error


def downgrade(url: str, revision: str = "base") -> None:
    """Back to an older schema; what the older one has no place for is lost."""
    with _ONE_AT_A_TIME, sqlite.migrating_engine(sqlite.parse(url)).begin() as connection:
        alembic.command.downgrade(_config(connection), revision)


def _config(connection: sa.Connection) -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(pathlib.Path(migrations.__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
