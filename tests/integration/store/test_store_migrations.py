"""The schema goes up, down and up again on both databases, and is the one that the code speaks to."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
from collections.abc import Iterator

import alembic.autogenerate
import alembic.migration
import pytest
import sqlalchemy as sa

from tests.support import postgres, stores
from tms_server.model import errors
from tms_server.store import migrate, opening, tables
from tms_server.store import postgres as postgres_module
from tms_server.store import sqlite as sqlite_module


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    """Of a database without a schema."""
    if request.param == "sqlite":
        yield stores.url_of(tmp_path / "tms.db")
        return
    server: postgres.Server = request.getfixturevalue("postgres_server")
    name = server.create()
    yield server.url(name)
    server.drop(name)


def _engine(url: str) -> sa.Engine:
    if postgres_module.is_one(url):
        return postgres_module.Database(postgres_module.parse(url)).reading_engine()
    return sqlite_module.reading_engine(sqlite_module.parse(url))


def _tables(url: str) -> set[str]:
    with _engine(url).connect() as connection:
        return set(sa.inspect(connection).get_table_names()) - {"alembic_version"}


async def test_up_down_and_up_again_with_data_between(url: str) -> None:
    for _ in range(2):
        store = await stores.open_store(url)
        await stores.add(store, stores.new_lease(1, labels={"a": "b"}))
        await store.write(lambda unit: unit.put_group(stores.new_group(), None))
        await store.write(lambda unit: unit.put_assignment(stores.new_assignment(1)))
        await store.write(lambda unit: unit.put_reports([stores.new_report(replica=each) for each in ("", "a", "b")]))
        await store.close()
        await migrate.downgrade(url)
        assert _tables(url) == set()
        assert await migrate.current(url) is None
        await migrate.upgrade(url)
        assert _tables(url) == set(tables.METADATA.tables)


async def test_each_step_keeps_what_both_sides_know(url: str) -> None:
    store = await stores.open_store(url)
    (added,) = await stores.add(store, stores.new_lease(1))
    await store.write(lambda unit: unit.put_group(stores.new_group(), None))
    await store.write(lambda unit: unit.put_assignment(stores.new_assignment(1)))
    await store.write(lambda unit: unit.put_reports([stores.new_report(replica=each) for each in ("", "a")]))
    await store.close()
    await migrate.downgrade(url, "0001")
    assert await migrate.current(url) == "0001"
    store = await stores.open_store(url)
    assert await store.read(lambda reader: reader.unended_leases()) == (added,)
    assert await store.read(lambda reader: reader.groups()) == (stores.new_group(),)
    assert await store.read(lambda reader: reader.assignments()) == (stores.new_assignment(1),)
    assert await store.read(lambda reader: reader.reports()) == (stores.new_report(),)
    await store.close()


async def test_the_migrated_schema_is_that_of_the_code(url: str) -> None:
    await migrate.upgrade(url)
    with _engine(url).connect() as connection:
        context = alembic.migration.MigrationContext.configure(connection, opts={"compare_type": True})
        assert alembic.autogenerate.compare_metadata(context, tables.METADATA) == []
        reflected = sa.MetaData()
        reflected.reflect(connection)
        found = {name: _constraints(each, connection) for name, each in reflected.tables.items()}
        wanted = {name: _constraints(each, connection) for name, each in tables.METADATA.tables.items()}
    found.pop("alembic_version")
    assert found == wanted


def _constraints(table: sa.Table, connection: sa.Connection) -> set[tuple[str, object]]:
    preparer = connection.dialect.identifier_preparer
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


async def test_nobody_migrates_a_file_that_a_server_uses(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tms.db"
    assert await migrate.current(stores.url_of(path)) is None
    assert not path.exists()
    store = await stores.open_sqlite(path)
    with pytest.raises(errors.FailedPrecondition, match="another server runs on"):
        await migrate.upgrade(stores.url_of(path))
    await store.close()
    assert await migrate.current(stores.url_of(path)) == migrate.head()


def test_what_the_setup_raises_lets_go_of_the_database(tmp_path: pathlib.Path) -> None:
    url = stores.url_of(tmp_path / "tms.db")

    def fails(_: sa.Connection) -> None:
        raise errors.FailedPrecondition("no")

    for _ in range(2):
        with pytest.raises(errors.FailedPrecondition, match=r"^no$"):
            opening.open_database(url, fails)
