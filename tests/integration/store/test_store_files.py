"""The database file: whose it is, how it is opened, and what is refused."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
import stat

import pytest

from tests.support import stores
from tms_server import clock
from tms_server.model import errors, ids
from tms_server.store import sqlite
from tms_server.store import store as sql


def _mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_only_the_owner_can_read_the_database(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "made" / "by the store"
    store = await stores.open_sqlite(folder / "tms.db")
    await stores.add(store, stores.new_lease(1))
    files = {file.name: _mode(file) for file in folder.iterdir()}
    await store.close()
    assert _mode(folder) == 0o700
    assert set(files) >= {"tms.db", "tms.db-wal", "tms.db.lock"}
    assert set(files.values()) == {0o600}


async def test_a_database_that_others_can_read_is_made_private(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tms.db"
    path.touch(mode=0o644)
    await (await stores.open_sqlite(path)).close()
    assert _mode(path) == 0o600


async def test_a_second_server_on_the_database_is_refused_until_the_first_has_closed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tms.db"
    first = await stores.open_sqlite(path)
    with pytest.raises(errors.FailedPrecondition, match="another server runs on"):
        await stores.open_sqlite(path)
    await stores.add(first, stores.new_lease(1))
    await first.close()
    second = await stores.open_sqlite(path)
    assert len(await second.read(lambda reader: reader.unended_leases())) == 1
    await second.close()


async def test_the_installation_keeps_its_id_and_history_over_restarts(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tms.db"
    first = await stores.open_sqlite(path)
    await stores.add(first, stores.new_lease(1))
    before = await first.read(lambda reader: (reader.installation(), reader.changes(0, 10)))
    await first.close()
    second = await sql.SqlStore.open(stores.url_of(path), clock.SystemClock(), lambda: ids.InstallationId("other"))
    assert await second.read(lambda reader: (reader.installation(), reader.changes(0, 10))) == before
    (added,) = await stores.add(second, stores.new_lease(2))
    await second.close()
    assert added.revision == 2


async def test_writes_are_synced_and_readers_cannot_write(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tms.db"
    sqlite.make_private(path)
    for engine, read_only in ((sqlite.writing_engine(path), 0), (sqlite.reading_engine(path), 1)):
        with engine.connect() as connection:
            values = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "query_only", "busy_timeout")
            }
        assert values == {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1 - read_only,
            "query_only": read_only,
            "busy_timeout": sqlite.BUSY_TIMEOUT_MS,
        }


@pytest.mark.parametrize("url", ["postgresql+psycopg://db/tms", "mysql://db/tms", "sqlite+aiosqlite:///tms.db"])
async def test_another_database_is_refused_by_the_settings_name(url: str) -> None:
    with pytest.raises(errors.Unimplemented, match="database_url"):
        await sql.SqlStore.open(url, clock.SystemClock(), lambda: ids.InstallationId("i"))


@pytest.mark.parametrize(
    "url", ["", "tms.db", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true", "a://b:c"]
)
async def test_a_url_that_names_no_file_is_refused(url: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises((errors.InvalidField, errors.Unimplemented), match="database_url"):
        await sql.SqlStore.open(url, clock.SystemClock(), lambda: ids.InstallationId("i"))


async def test_a_path_with_odd_characters_is_a_path(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "100% ü #1.db"
    await (await stores.open_sqlite(path)).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT revision FROM installation").fetchall() == [(0,)]


async def test_a_file_that_is_no_database_is_refused_and_not_locked(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tms.db"
    path.write_bytes(b"certainly not a database" * 100)
    with pytest.raises(errors.FailedPrecondition, match="not a database"):
        await stores.open_sqlite(path)
    path.unlink()
    await (await stores.open_sqlite(path)).close()
