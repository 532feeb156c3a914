"""Several servers on one database: they write one after the other, see what the others did, and are woken for it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import operator
from collections.abc import AsyncIterator

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.integration.store import keeping
from tests.support import postgres, stores
from tms_server.model import errors, group, ids, lease
from tms_server.ports import store as port
from tms_server.store import commits
from tms_server.store import store as sql


@pytest.fixture
async def pair(postgres_url: str) -> AsyncIterator[tuple[sql.SqlStore, sql.SqlStore]]:
    async with _servers(postgres_url) as (first, second):
        yield first, second


@contextlib.asynccontextmanager
async def _servers(url: str) -> AsyncIterator[tuple[sql.SqlStore, sql.SqlStore]]:
    first, second = await asyncio.gather(stores.open_store(url), stores.open_store(url))
    try:
        yield first, second
    finally:
        await asyncio.gather(first.close(), second.close())


async def test_servers_that_start_together_share_one_installation(postgres_server: postgres.Server) -> None:
    name = postgres_server.create()
    url = postgres_server.url(name)
    opened = await asyncio.gather(*(stores.open_store(url) for _ in range(3)))
    found = {await each.read(lambda reader: reader.installation()) for each in opened}
    await asyncio.gather(*(each.close() for each in opened))
    postgres_server.drop(name)
    assert len(found) == 1


async def test_revisions_of_several_writers_are_seen_in_order_and_none_is_skipped(
    pair: tuple[sql.SqlStore, sql.SqlStore],
) -> None:
    async def client(store: port.Store, first: int) -> None:
        for number in range(first, first + 15):
            await stores.add(store, stores.new_lease(number))

    async def watch(store: port.Store, total: int) -> list[lease.LeaseEvent]:
        seen: list[lease.LeaseEvent] = []
        while len(seen) < total:
            after = seen[-1].revision if seen else 0
            seen += await store.read(operator.methodcaller("changes", after, 7))
        return seen

    async with asyncio.timeout(stores.PATIENCE_S), asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(watch(each, 90)) for each in pair]
        for number in range(6):
            tasks.create_task(client(pair[number % 2], number * 15))
    for each in watching:
        assert [event.revision for event in each.result()] == list(range(1, 91))


async def test_one_server_is_woken_by_the_commits_of_another(pair: tuple[sql.SqlStore, sql.SqlStore]) -> None:
    first, second = pair
    woken, reported = asyncio.Event(), asyncio.Event()
    second.subscribe(woken.set)
    second.subscribe_reports(reported.set)
    await first.write(lambda unit: unit.put_group(stores.new_group(), None))
    await stores.add(first, stores.new_lease(1))
    async with asyncio.timeout(stores.PATIENCE_S):
        await woken.wait()
    assert not reported.is_set()
    assert await second.read(lambda reader: reader.get_lease(stores.lease_id(1))) is not None
    report = stores.new_report()
    await first.write(lambda unit: unit.put_reports([report]))
    async with asyncio.timeout(stores.PATIENCE_S):
        await reported.wait()
    assert await second.read(lambda reader: reader.reports()) == (report,)


async def test_a_stale_writer_of_another_server_is_refused(pair: tuple[sql.SqlStore, sql.SqlStore]) -> None:
    (added,) = await stores.add(pair[0], stores.new_lease(1))
    await pair[0].write(lambda unit: unit.put_group(stores.new_group(), None))
    outcomes = await asyncio.gather(
        *(each.write(operator.methodcaller("save_lease", added)) for each in pair * 3), return_exceptions=True
    )
    assert [type(each) for each in outcomes].count(errors.Conflict) == 5
    changed = dataclasses.replace(stores.new_group(), generation=2)
    outcomes = await asyncio.gather(
        *(each.write(operator.methodcaller("put_group", changed, 1)) for each in pair * 3), return_exceptions=True
    )
    assert [type(each) for each in outcomes].count(errors.Conflict) == 5


async def test_a_unit_decides_on_what_the_others_have_committed(pair: tuple[sql.SqlStore, sql.SqlStore]) -> None:
    await pair[0].write(lambda unit: unit.put_group(stores.new_group(), None))

    def grow(unit: port.UnitOfWork) -> None:
        stored = unit.get_group(ids.GroupId("g1"))
        assert stored is not None
        unit.put_group(dataclasses.replace(stored, capacity_bytes=stored.capacity_bytes + 1), stored.generation)

    async with asyncio.TaskGroup() as tasks:
        for number in range(60):
            tasks.create_task(pair[number % 2].write(grow))
    grown: tuple[group.WorkerGroup, ...] = await pair[0].read(lambda reader: reader.groups())
    assert grown[0].capacity_bytes == stores.new_group().capacity_bytes + 60


async def test_who_fell_far_behind_reads_everything_again(
    pair: tuple[sql.SqlStore, sql.SqlStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "KEPT_COMMITS", 3)
    first, second = pair
    assert await second.read(keeping.everything) == await first.read(keeping.everything)
    for number in range(8):
        await stores.add(first, stores.new_lease(number))
    assert len(await second.read(lambda reader: reader.unended_leases())) == 8
    assert await second.write(keeping.everything) == await first.read(keeping.everything)


def test_what_each_server_keeps_is_what_is_stored(postgres_server: postgres.Server, postgres_template: str) -> None:
    @hypothesis.settings(deadline=None, max_examples=5)
    @hypothesis.given(st.lists(st.tuples(keeping.STEPS, st.booleans(), st.booleans()), max_size=10))
    def law(units: list[tuple[list[tuple[str, int]], bool, bool]]) -> None:
        name = postgres_server.create(postgres_template)
        asyncio.run(_compare(postgres_server.url(name), units))
        postgres_server.drop(name)

    law()


async def _compare(url: str, units: list[tuple[list[tuple[str, int]], bool, bool]]) -> None:
    async with _servers(url) as pair:
        for steps, gives_up, of_second in units:
            seen = await keeping.run(pair[of_second], steps, gives_up=gives_up)
            plain = keeping.plainly(url)
            for each in pair:
                assert await each.read(keeping.everything) == plain
                assert await each.write(keeping.everything) == plain
            assert gives_up or seen == plain
