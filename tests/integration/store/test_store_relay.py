"""What a sidecar says to one server reaches the others over the database."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections.abc import AsyncIterator

import pytest

from tests.support import stores
from tms_server.model import group
from tms_server.reconcilers import relay
from tms_server.store import store as sql
from tms_server.testing import clock as fake_clock
from tms_server.world import live

SECOND = dt.timedelta(seconds=1)
HOUR = dt.timedelta(hours=1)
REPORT = stores.new_report()


class Server:
    """What of a server takes part."""

    def __init__(self, store: sql.SqlStore, ahead: dt.timedelta) -> None:
        self.store = store
        self.clock = fake_clock.FakeClock(fake_clock.START + ahead)
        self.live = live.Live()
        self.leads = False
        self.send = relay.Sender(store, self.clock, self.live, lambda: self.leads)
        self.receive = relay.Receiver(store, self.clock, self.live)

    def hear(self, report: group.GroupReport = REPORT, **changes: object) -> group.GroupReport:
        said = dataclasses.replace(report, received_at=self.clock.now(), **changes)  # type: ignore[arg-type] # by name
        self.live.hear(said)
        return said

    def heard(self) -> group.GroupReport | None:
        return self.live.heard(REPORT.worker)


@pytest.fixture
async def pair(postgres_url: str) -> AsyncIterator[tuple[Server, Server]]:
    """The second one's clock is an hour ahead."""
    opened = [await stores.open_store(postgres_url) for _ in range(2)]
    await opened[0].write(lambda unit: unit.put_group(stores.new_group(), None))
    servers = Server(opened[0], dt.timedelta(0)), Server(opened[1], HOUR)
    for each in servers:
        await each.receive()
    yield servers
    for store in opened:
        await store.close()


def _later(pair: tuple[Server, Server], span: dt.timedelta) -> None:
    for each in pair:
        each.clock.advance(span)


async def test_a_report_reaches_the_other_server_and_wakes_it(pair: tuple[Server, Server]) -> None:
    first, second = pair
    woken = asyncio.Event()
    first.store.subscribe_reports(woken.set)
    second.hear(generation=5)
    assert await second.send() is None
    async with asyncio.timeout(stores.PATIENCE_S):
        await woken.wait()
    await first.receive()
    taken = first.heard()
    assert taken is not None
    assert (taken.generation, taken.received_at) == (5, first.clock.now())
    assert first.live.gone_since(REPORT.worker) is None
    assert first.live.own() == ()
    # What it has heard of is not its own to store.
    assert await first.send() is None
    assert [each.received_at for each in await first.store.read(lambda reader: reader.reports())] == [
        second.clock.now()
    ]


async def test_a_clock_that_is_behind_makes_no_report_old(pair: tuple[Server, Server]) -> None:
    first, second = pair
    first.hear()
    await first.send()
    await second.receive()
    taken = second.heard()
    assert taken is not None
    assert taken.received_at == second.clock.now() - relay.SILENCE


async def test_a_worker_whose_server_falls_silent_counts_as_gone_from_its_last_word(
    pair: tuple[Server, Server],
) -> None:
    first, second = pair
    for _ in range(3):
        second.hear()
        await second.send()
        due = await first.receive()
        assert due == first.clock.now() + relay.SILENCE
        _later(pair, relay.REST)
    last_word = first.clock.now() - relay.REST
    await first.receive()
    assert first.live.gone_since(REPORT.worker) is None
    _later(pair, relay.SILENCE)
    assert await first.receive() is None
    assert first.live.gone_since(REPORT.worker) == last_word
    second.hear()
    await second.send()
    await first.receive()
    assert first.live.gone_since(REPORT.worker) is None


async def test_a_worker_that_comes_here_is_heard_here_only(pair: tuple[Server, Server]) -> None:
    first, second = pair
    second.hear()
    await second.send()
    await first.receive()
    _later(pair, SECOND)
    said = first.hear(generation=9)
    await first.receive()
    assert first.heard() == said
    assert first.live.own() == (said,)
    second.hear(generation=8)
    await second.send()
    await first.receive()
    assert first.heard() == said
    # Its stream here ends, and what this server stored itself does not bring it back.
    await first.send()
    first.live.lose(REPORT.worker, first.clock.now())
    await first.receive()
    assert first.live.gone_since(REPORT.worker) == first.clock.now()
    _later(pair, SECOND)
    second.hear(generation=10)
    await second.send()
    await first.receive()
    taken = first.heard()
    assert taken is not None
    assert (taken.generation, first.live.gone_since(REPORT.worker)) == (10, None)


async def test_who_leads_need_not_send(pair: tuple[Server, Server]) -> None:
    pair[0].leads = True
    pair[0].hear()
    assert await pair[0].send() is None
    assert await pair[0].store.read(lambda reader: reader.reports()) == ()


async def test_a_server_that_starts_knows_nobody_as_connected(pair: tuple[Server, Server]) -> None:
    first, second = pair
    second.hear()
    await second.send()
    started = Server(first.store, dt.timedelta(0))
    started.live.restore(await first.store.read(lambda reader: reader.reports()), started.clock.now())
    await started.receive()
    assert started.live.gone_since(REPORT.worker) == started.clock.now()
    assert started.live.own() == ()
    _later((started, second), SECOND)
    second.hear()
    await second.send()
    await started.receive()
    assert started.live.gone_since(REPORT.worker) is None
