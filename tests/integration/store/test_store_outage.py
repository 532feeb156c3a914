"""A PostgreSQL database that is away for a while: calls are told so, and go on by themselves once it is back."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import threading
from collections.abc import AsyncIterator

import psycopg
import pytest

from tests.support import postgres, stores
from tms_server.model import errors
from tms_server.ports import store as port
from tms_server.reconcilers import heartbeat
from tms_server.store import store as sql
from tms_server.testing import clock as fake_clock
from tms_server.world import live

MINUTE = dt.timedelta(minutes=1)


@pytest.fixture
def database(postgres_url: str) -> str:
    """Its name."""
    found = re.search("///(\\w+)", postgres_url)
    assert found is not None
    return found[1]


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[sql.SqlStore]:
    store = await stores.open_store(postgres_url)
    yield store
    await store.close()


async def test_while_the_database_is_away_calls_are_unavailable_and_then_go_on(
    store: sql.SqlStore, postgres_server: postgres.Server, database: str
) -> None:
    (added,) = await stores.add(store, stores.new_lease(1))
    assert await store.read(lambda reader: reader.unended_leases()) == (added,)
    postgres_server.shut_out(database)
    for _ in range(3):
        with pytest.raises(errors.Unavailable, match="not currently accepting connections"):
            await stores.add(store, stores.new_lease(2))
        with pytest.raises(errors.Unavailable, match="not currently accepting connections"):
            await store.read(lambda reader: reader.revision())
    woken = asyncio.Event()
    store.subscribe(woken.set)
    postgres_server.let_in(database)
    (second,) = await stores.add(store, stores.new_lease(2))
    assert await store.read(lambda reader: reader.unended_leases()) == (added, second)
    await _woken_by_another_server(store, postgres_server, database, woken)


async def _woken_by_another_server(
    store: sql.SqlStore, server: postgres.Server, database: str, woken: asyncio.Event
) -> None:
    """The listener is back, and first wakes everybody for what it may have missed."""
    async with asyncio.timeout(stores.PATIENCE_S):
        await woken.wait()
        woken.clear()
        other = await stores.open_store(server.url(database))
        await stores.add(other, stores.new_lease(77))
        await woken.wait()
    await other.close()
    assert await store.read(lambda reader: reader.get_lease(stores.lease_id(77))) is not None


async def test_connections_that_broke_while_nobody_used_them_are_not_noticed(
    store: sql.SqlStore, postgres_server: postgres.Server, database: str
) -> None:
    (added,) = await stores.add(store, stores.new_lease(1))
    assert await store.read(lambda reader: reader.unended_leases()) == (added,)
    postgres_server.shut_out(database)
    postgres_server.let_in(database)
    (second,) = await stores.add(store, stores.new_lease(2))
    assert await store.read(lambda reader: reader.unended_leases()) == (added, second)


async def test_a_group_whose_connection_breaks_before_the_commit_runs_again(
    store: sql.SqlStore, postgres_server: postgres.Server
) -> None:
    runs: list[int] = []

    def work(unit: port.UnitOfWork) -> None:
        unit.add_lease(stores.new_lease(1), "", stores.EVENT)
        runs.append(1)
        if len(runs) == 1:
            _break(postgres_server, unit)

    async with stores.held_writer(store):
        together = asyncio.gather(
            stores.add(store, stores.new_lease(5)), store.write(work), stores.add(store, stores.new_lease(6))
        )
    await together
    assert len(runs) == 2
    held = await store.read(lambda reader: reader.unended_leases())
    assert [each.id for each in held] == [stores.lease_id(number) for number in (1, 5, 6)]
    assert await store.read(lambda reader: reader.revision()) == 3


async def test_a_connection_that_breaks_each_time_is_given_up(
    store: sql.SqlStore, postgres_server: postgres.Server
) -> None:
    def work(unit: port.UnitOfWork) -> None:
        _break(postgres_server, unit)
        unit.add_lease(stores.new_lease(1), "", stores.EVENT)

    with pytest.raises(errors.Unavailable, match="nothing has happened"):
        await store.write(work)
    assert await store.read(lambda reader: reader.revision()) == 0


async def test_a_read_whose_connection_breaks_runs_again(store: sql.SqlStore, postgres_server: postgres.Server) -> None:
    runs: list[int] = []

    def work(reader: port.Reader) -> int:
        runs.append(1)
        if len(runs) == 1:
            _break(postgres_server, reader)
        return reader.revision()

    assert await store.read(work) == 0
    assert len(runs) == 2


def _break(server: postgres.Server, unit: port.Reader) -> None:
    """The server throws this connection out."""
    pid = unit._connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()  # type: ignore[attr-defined] # the test plays the database
    server.execute(f"SELECT pg_terminate_backend({pid}, 10000)")


async def test_a_server_that_stops_in_the_middle_does_not_hold_up_the_others(postgres_url: str) -> None:
    stopped, other = await stores.open_store(postgres_url), await stores.open_store(postgres_url)
    begun, go_on = threading.Event(), threading.Event()

    def stop(unit: port.UnitOfWork) -> None:
        if begun.is_set():
            return
        unit._connection.exec_driver_sql("SET idle_in_transaction_session_timeout = 50")  # type: ignore[attr-defined] # the test need not wait
        unit.add_lease(stores.new_lease(1), "", stores.EVENT)
        begun.set()
        assert go_on.wait(stores.PATIENCE_S)

    stopping = asyncio.create_task(stopped.write(stop))
    assert await asyncio.to_thread(begun.wait, stores.PATIENCE_S)
    (added,) = await stores.add(other, stores.new_lease(2))
    go_on.set()
    await stopping
    assert await other.read(lambda reader: reader.unended_leases()) == (added,)
    await stopped.close()
    await other.close()


async def test_a_turn_that_does_not_come_makes_writes_unavailable(store: sql.SqlStore, postgres_url: str) -> None:
    def do_not_wait(unit: port.UnitOfWork) -> None:
        unit._connection.exec_driver_sql("SET lock_timeout = 1")  # type: ignore[attr-defined] # the test need not wait

    await store.write(do_not_wait)
    with psycopg.connect(postgres_url) as holder:
        holder.execute("SELECT FROM installation FOR UPDATE")
        with pytest.raises(errors.Unavailable, match="lock timeout"):
            await stores.add(store, stores.new_lease(1))
        assert await store.read(lambda reader: reader.revision()) == 0
    assert await stores.add(store, stores.new_lease(1))


async def test_a_commit_that_is_refused_undoes_the_group(store: sql.SqlStore, postgres_url: str) -> None:
    trap = """
        CREATE TABLE trap (id TEXT REFERENCES leases (id) DEFERRABLE INITIALLY DEFERRED);
        CREATE FUNCTION spring() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN INSERT INTO trap VALUES ('nobody'); RETURN new; END $$;
        CREATE TRIGGER spring AFTER INSERT ON pools FOR EACH ROW WHEN (new.name = 'b') EXECUTE FUNCTION spring();
    """
    with psycopg.connect(postgres_url) as administrator:
        administrator.execute(trap)
    async with stores.held_writer(store):
        together = asyncio.gather(
            *(stores.for_each(store, [stores.new_pool(name)], lambda unit, pool: unit.put_pool(pool)) for name in "ab"),
            return_exceptions=True,
        )
    assert [type(each) for each in await together] == [errors.Unavailable] * 2
    assert await store.read(lambda reader: (reader.pools(), reader.revision())) == ((), 0)
    assert await stores.add(store, stores.new_lease(1))


async def test_a_connection_that_breaks_in_the_commit_leaves_it_open_what_became_of_it(
    store: sql.SqlStore, postgres_url: str
) -> None:
    trap = """
        CREATE FUNCTION spring() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER spring AFTER INSERT ON pools DEFERRABLE INITIALLY DEFERRED
          FOR EACH ROW EXECUTE FUNCTION spring();
    """
    with psycopg.connect(postgres_url) as administrator:
        administrator.execute(trap)
    runs: list[int] = []

    def work(unit: port.UnitOfWork) -> None:
        runs.append(1)
        unit.put_pool(stores.new_pool())

    with pytest.raises(errors.Unavailable, match="may have been made or not"):
        await store.write(work)
    assert len(runs) == 1
    assert await stores.add(store, stores.new_lease(1))
    assert await store.read(lambda reader: reader.pools()) == ()


async def test_an_outage_that_two_servers_saw_is_credited_once(
    postgres_url: str, postgres_server: postgres.Server, database: str
) -> None:
    clock = fake_clock.FakeClock()
    opened = [await stores.open_store(postgres_url, clock_=clock) for _ in range(2)]
    await stores.add(opened[0], stores.new_lease(1))
    beats = [heartbeat.Heartbeat(each, clock, live.Live()) for each in opened]
    for beat in beats:
        await beat()
    postgres_server.shut_out(database)
    clock.advance(5 * MINUTE)
    for beat in beats:
        with pytest.raises(errors.Unavailable):
            await beat()
    clock.advance(5 * MINUTE)
    postgres_server.let_in(database)
    for beat in beats:
        await beat()
    held = await opened[1].read(lambda reader: reader.get_lease(stores.lease_id(1)))
    assert held is not None
    assert held.credit == 10 * MINUTE
    for each in opened:
        await each.close()


@pytest.mark.slow  # A real server crashes and recovers.
async def test_a_database_server_that_crashes_loses_nothing_that_was_acknowledged() -> None:
    with postgres.serve() as server:
        name = server.create()
        store = await stores.open_store(server.url(name))
        (added,) = await stores.add(store, stores.new_lease(1))
        server.stop()
        with pytest.raises(errors.Unavailable):
            await store.read(lambda reader: reader.revision())
        with pytest.raises(errors.Unavailable):
            await stores.add(store, stores.new_lease(2))
        server.start()
        (second,) = await stores.add(store, stores.new_lease(2))
        assert await store.read(lambda reader: reader.unended_leases()) == (added, second)
        await store.close()
