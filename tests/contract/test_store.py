"""What every store holds: units of work, revisions, wakes."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import threading
from typing import Any

import pytest

from tests.support import stores
from tms_server.model import errors, lease
from tms_server.ports import store as port

# Units of work


async def test_a_unit_answers_what_it_returns_and_reads_see_it(store: port.Store) -> None:
    (added,) = await stores.add(store, stores.new_lease(1))
    assert await store.read(lambda reader: reader.get_lease(added.id)) == added
    assert await store.read(lambda reader: reader.get_lease(stores.lease_id(2))) is None


async def test_a_unit_that_raises_takes_back_only_its_own_changes(store: port.Store) -> None:
    class OwnError(Exception):
        pass

    def fails(unit: port.UnitOfWork) -> None:
        unit.add_lease(stores.new_lease(2), "", stores.EVENT)
        unit.put_pool(stores.new_pool())
        raise OwnError

    async with stores.held_writer(store):
        together = asyncio.gather(
            stores.add(store, stores.new_lease(1)),
            store.write(fails),
            stores.add(store, stores.new_lease(3)),
            return_exceptions=True,
        )
    first, failed, third = await together
    assert isinstance(failed, OwnError)
    assert not isinstance(first, BaseException)
    assert not isinstance(third, BaseException)
    assert await store.read(lambda reader: reader.unended_leases()) == (*first, *third)
    assert await store.read(lambda reader: (reader.pools(), reader.revision())) == ((), 2)


@pytest.mark.parametrize("error", [StopIteration(1), asyncio.CancelledError(), SystemExit(3)])
async def test_whatever_a_unit_raises_harms_nobody_else(store: port.Store, error: BaseException) -> None:
    def fails(_: port.Reader) -> None:
        raise error

    for run in (store.read, store.write):
        failing = asyncio.ensure_future(_outcome(run(fails)))
        assert isinstance(await failing, (type(error), RuntimeError))
    assert await stores.add(store, stores.new_lease(1))


async def _outcome(call: Any) -> BaseException | None:
    try:
        await call
    except BaseException as error:  # noqa: BLE001 - that is what is looked at
        return error
    return None


async def test_a_unit_sees_its_own_changes(store: port.Store) -> None:
    def work(unit: port.UnitOfWork) -> tuple[lease.Lease | None, int, int]:
        added = unit.add_lease(stores.new_lease(1), "", stores.EVENT)
        return unit.get_lease(added.id), added.revision, unit.revision()

    seen, revision, last = await store.write(work)
    assert seen is not None
    assert (seen.revision, revision, last) == (1, 1, 1)


async def test_a_unit_or_reader_that_is_kept_is_of_no_use(store: port.Store) -> None:
    unit = await store.write(lambda unit: unit)
    reader = await store.read(lambda reader: reader)
    with pytest.raises(RuntimeError, match="has ended"):
        unit.put_pool(stores.new_pool())
    with pytest.raises(RuntimeError, match="has ended"):
        reader.pools()


async def test_a_read_sees_one_snapshot_while_others_write(store: port.Store) -> None:
    read_once, written = threading.Event(), threading.Event()

    def read_twice(reader: port.Reader) -> tuple[int, int, tuple[lease.Lease, ...]]:
        before = reader.revision()
        read_once.set()
        assert written.wait(stores.PATIENCE_S)
        return before, reader.revision(), reader.unended_leases()

    reading = asyncio.create_task(store.read(read_twice))
    assert await asyncio.to_thread(read_once.wait, stores.PATIENCE_S)
    await stores.add(store, stores.new_lease(1))
    assert await store.read(lambda reader: reader.revision()) == 1
    written.set()
    assert await reading == (0, 0, ())


async def test_a_caller_that_gives_up_harms_nobody_else(store: port.Store) -> None:
    async with stores.held_writer(store):
        cancelled = asyncio.create_task(stores.add(store, stores.new_lease(1)))
        waiting = asyncio.create_task(stores.add(store, stores.new_lease(2)))
        await stores.turn()
        cancelled.cancel()
    assert await waiting
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled
    assert cancelled.cancelled()
    assert await stores.add(store, stores.new_lease(3))


async def test_a_caller_that_gives_up_while_its_unit_runs_harms_nobody_else(store: port.Store) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(unit: port.UnitOfWork) -> None:
        begun.set()
        assert go_on.wait(stores.PATIENCE_S)
        unit.add_lease(stores.new_lease(1), "", stores.EVENT)

    running = asyncio.create_task(store.write(work))
    assert await asyncio.to_thread(begun.wait, stores.PATIENCE_S)
    running.cancel()
    go_on.set()
    assert await stores.add(store, stores.new_lease(2))
    assert running.cancelled()


async def test_closing_finishes_what_was_accepted_and_refuses_the_rest(store: port.Store) -> None:
    async with stores.held_writer(store):
        accepted = [asyncio.create_task(stores.add(store, stores.new_lease(number))) for number in range(20)]
        await stores.turn()
        closing = asyncio.create_task(store.close())
        await stores.turn()
        with pytest.raises(errors.Unavailable):
            await stores.add(store, stores.new_lease(99))
    await closing
    assert all([await each for each in accepted])
    with pytest.raises(errors.Unavailable):
        await store.read(lambda reader: reader.revision())
    await store.close()


# Revisions and waking


async def test_a_watcher_never_meets_an_earlier_revision_later(store: port.Store) -> None:
    async def client(first: int) -> None:
        for number in range(first, first + 20):
            await stores.add(store, stores.new_lease(number))
            with pytest.raises(errors.AlreadyExists):
                await stores.add(store, stores.new_lease(number + 500), stores.new_lease(number))

    async def watch(total: int) -> list[lease.LeaseEvent]:
        seen: list[lease.LeaseEvent] = []
        while len(seen) < total:
            after = seen[-1].revision if seen else 0
            seen += await store.read(operator.methodcaller("changes", after, 7))
        return seen

    async with asyncio.timeout(stores.PATIENCE_S), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch(100))
        for first in range(0, 100, 20):
            tasks.create_task(client(first))
    assert {event.lease_id for event in watching.result()} == {stores.lease_id(number) for number in range(100)}
    assert tuple(watching.result()) == await store.read(lambda reader: reader.changes(0, 1000))
    assert [event.revision for event in watching.result()] == list(range(1, 101))


async def test_subscribers_wake_after_commits_that_raise_the_revision_and_no_others(store: port.Store) -> None:
    wakes, woken = [0], asyncio.Event()

    def wake() -> None:
        wakes[0] += 1
        woken.set()

    stop = store.subscribe(wake)
    (added,) = await stores.add(store, stores.new_lease(1))
    async with asyncio.timeout(stores.PATIENCE_S):
        await woken.wait()
    await store.write(lambda unit: unit.renew_lease(added.id, stores.NOW, None))
    await store.write(lambda unit: unit.touch(stores.NOW))
    with pytest.raises(errors.AlreadyExists):
        await stores.add(store, stores.new_lease(1))
    await stores.turn()
    assert wakes == [1]
    stop()
    stop()
    await stores.add(store, stores.new_lease(2))
    await stores.turn()
    assert wakes == [1]


async def test_a_group_of_commits_wakes_once_and_a_wake_that_raises_hinders_nobody(store: port.Store) -> None:
    wakes, troubles = [0], []

    def wake() -> None:
        wakes[0] += 1

    def trouble() -> None:
        raise ValueError("a subscriber's own")

    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context["exception"]))
    store.subscribe(trouble)
    store.subscribe(wake)
    async with stores.held_writer(store):
        writes = [asyncio.create_task(stores.add(store, stores.new_lease(number))) for number in range(10)]
    await asyncio.gather(*writes)
    await stores.turn()
    assert wakes == [1]
    assert [str(each) for each in troubles] == ["a subscriber's own"]
