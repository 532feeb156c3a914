"""What happens when the database fails: nothing is half done, everybody is told, and the store goes on."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.support import stores
from tms_server.model import errors
from tms_server.ports import store as port
from tms_server.store import store as sql


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "tms.db"


@pytest.fixture
async def store(path: pathlib.Path) -> AsyncIterator[sql.SqlStore]:
    store = await stores.open_sqlite(path, sql.Options(queue_limit=8))
    yield store
    await store.close()


def _execute(path: pathlib.Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(script)


async def _pools_of_a_group_of_commits(store: port.Store) -> Sequence[object]:
    async with stores.held_writer(store):
        together = asyncio.gather(
            *(
                stores.for_each(store, [stores.new_pool(name)], lambda unit, pool: unit.put_pool(pool))
                for name in "abc"
            ),
            stores.add(store, stores.new_lease(1)),
            return_exceptions=True,
        )
    return await together


async def test_a_commit_that_fails_undoes_the_group_and_tells_everybody(
    store: sql.SqlStore, path: pathlib.Path
) -> None:
    # A deferred reference that nothing satisfies is found out by the COMMIT itself.
    _execute(
        path,
        """
        CREATE TABLE trap (id TEXT REFERENCES leases (id) DEFERRABLE INITIALLY DEFERRED);
        CREATE TRIGGER spring AFTER INSERT ON pools WHEN new.name = 'b' BEGIN INSERT INTO trap VALUES ('nobody'); END;
        """,
    )
    wakes: list[None] = []
    store.subscribe(lambda: wakes.append(None))
    answers = await _pools_of_a_group_of_commits(store)
    assert [type(answer) for answer in answers] == [errors.Unavailable] * 4
    assert len({id(answer) for answer in answers}) == 4
    assert await store.read(lambda reader: (reader.pools(), reader.unended_leases(), reader.revision())) == ((), (), 0)
    _execute(path, "DROP TRIGGER spring; DROP TABLE trap")
    assert await _pools_of_a_group_of_commits(store) != answers
    assert len(await store.read(lambda reader: reader.pools())) == 3
    await stores.turn()
    assert len(wakes) == 1


async def test_a_full_disk_undoes_what_was_not_committed_and_the_store_goes_on(store: sql.SqlStore) -> None:
    def fill(unit: port.UnitOfWork) -> None:
        unit._connection.exec_driver_sql("PRAGMA max_page_count=1")  # type: ignore[attr-defined] # a disk of this size
        for number in range(2000):
            unit.add_lease(stores.new_lease(number, labels={"a": "x" * 1000}), "", stores.EVENT)

    async with stores.held_writer(store):
        filling = asyncio.create_task(store.write(fill))
        sharing = asyncio.create_task(stores.add(store, stores.new_lease(5000)))
    for lost in (filling, sharing):
        with pytest.raises(errors.Unavailable, match="full"):
            await lost
    assert await store.read(lambda reader: (reader.unended_leases(), reader.revision())) == ((), 0)
    # The next connection knows nothing of the small disk.
    assert await stores.add(store, stores.new_lease(1))


async def test_a_database_held_by_another_process_makes_writes_unavailable(
    store: sql.SqlStore, path: pathlib.Path
) -> None:
    def do_not_wait(unit: port.UnitOfWork) -> None:
        unit._connection.exec_driver_sql("PRAGMA busy_timeout=1")  # type: ignore[attr-defined] # the test need not wait

    await store.write(do_not_wait)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.Unavailable, match="locked"):
            await stores.add(store, stores.new_lease(1))
        assert await store.read(lambda reader: reader.revision()) == 0
        holder.execute("ROLLBACK")
    assert await stores.add(store, stores.new_lease(1))


async def test_more_than_the_queue_holds_is_refused(store: sql.SqlStore) -> None:
    async with stores.held_writer(store):
        waiting = [asyncio.create_task(stores.add(store, stores.new_lease(number))) for number in range(8)]
        await stores.turn()
        with pytest.raises(errors.ResourceExhausted):
            await stores.add(store, stores.new_lease(9))
    await asyncio.gather(*waiting)
    assert await stores.add(store, stores.new_lease(9))


def test_a_loop_that_is_gone_harms_neither_the_writer_nor_the_database(path: pathlib.Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(unit: port.UnitOfWork) -> None:
        begun.set()
        assert go_on.wait(stores.PATIENCE_S)
        unit.add_lease(stores.new_lease(1), "", stores.EVENT)

    async def abandon() -> sql.SqlStore:
        store = await stores.open_sqlite(path)
        writing = asyncio.create_task(store.write(work))
        assert await asyncio.to_thread(begun.wait, stores.PATIENCE_S)
        writing.cancel()
        return store

    abandoned = asyncio.run(abandon())
    go_on.set()

    async def look() -> int:
        await abandoned.close()
        store = await stores.open_sqlite(path)
        revision = await store.read(lambda reader: reader.revision())
        await store.close()
        return revision

    assert asyncio.run(look()) == 1
