"""The schema goes up, down and up again, and is the one that the code speaks to."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
from collections.abc import Iterator

import alembic.autogenerate
import alembic.migration
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite as sqlite_dialect

from tests.support import stores
from tms_server.model import errors
from tms_server.store import migrate, sqlite, tables


@contextlib.contextmanager
def _connection(path: pathlib.Path) -> Iterator[sa.Connection]:
    with sqlite.reading_engine(path).connect() as connection:
        yield connection


def _tables(path: pathlib.Path) -> set[str]:
    with _connection(path) as connection:
        return set(sa.inspect(connection).get_table_names()) - {"alembic_version"}


async def test_up_down_and_up_again_with_data_between(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tms.db"
    for _ in range(2):
        store = await stores.open_sqlite(path)
        await stores.add(store, stores.new_lease(1, labels={"a": "b"}))
        await store.write(lambda unit: unit.put_group(stores.new_group(), None))
        await store.write(lambda unit: unit.put_assignment(stores.new_assignment(1)))
        await store.close()
        await migrate.downgrade(stores.url_of(path))
        assert _tables(path) == set()
        await migrate.upgrade(stores.url_of(path))
        assert _tables(path) == set(tables.METADATA.tables)


async def test_the_migrated_schema_is_that_of_the_code(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tms.db"
    await migrate.upgrade(stores.url_of(path))
    with _connection(path) as connection:
        context = alembic.migration.MigrationContext.configure(connection, opts={"compare_type": True})
        assert alembic.autogenerate.compare_metadata(context, tables.METADATA) == []
        reflected = sa.MetaData()
        reflected.reflect(connection)
    for name, table in tables.METADATA.tables.items():
        assert _constraints(reflected.tables[name]) == _constraints(table)


def _constraints(table: sa.Table) -> set[tuple[str, object]]:
    preparer = sqlite_dialect.dialect().identifier_preparer
    return {(type(each).__name__, preparer.format_constraint(each)) for each in table.constraints}


async def test_going_up_twice_changes_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tms.db"
    await migrate.upgrade(stores.url_of(path))
    before = _dump(path)
    await migrate.upgrade(stores.url_of(path))
    assert _dump(path) == before


def _dump(path: pathlib.Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


async def test_a_database_of_a_newer_server_is_refused_and_left_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tms.db"
    await migrate.upgrade(stores.url_of(path))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = _dump(path)
    for _ in range(2):
        with pytest.raises(errors.FailedPrecondition, match="newer server"):
            await stores.open_sqlite(path)
    assert _dump(path) == before
