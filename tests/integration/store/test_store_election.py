"""Several servers elect one over a real database."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator

import pytest

from tests.support import postgres, stores
from tms_server.model import errors
from tms_server.reconcilers import election
from tms_server.store import store as sql
from tms_server.testing import clock as fake_clock

TTL = election.TIME_TO_LIVE


class Candidate:
    """One server with a store and a clock of its own."""

    def __init__(self, name: str, store: sql.SqlStore) -> None:
        self.clock = fake_clock.FakeClock()
        self.store = store
        self.told: list[bool] = []
        self.election = election.Election(store, self.clock, name, self._changed)

    def _changed(self) -> None:
        self.told.append(self.election.leads)


@pytest.fixture
async def pair(postgres_url: str) -> AsyncIterator[tuple[Candidate, Candidate]]:
    opened = [await stores.open_store(postgres_url) for _ in range(2)]
    yield Candidate("a", opened[0]), Candidate("b", opened[1])
    for each in opened:
        await each.close()


async def test_one_leads_until_it_is_silent_or_steps_down(pair: tuple[Candidate, Candidate]) -> None:
    first, second = pair
    for each in pair:
        await each.election()
    assert [each.election.leads for each in pair] == [True, False]
    for _ in range(6):
        for each in pair:
            each.clock.advance(TTL / 3)
            await each.election()
    assert [each.election.leads for each in pair] == [True, False]
    second.clock.advance(TTL)
    await second.election()
    first.clock.advance(TTL)
    assert [each.election.leads for each in pair] == [False, True]
    await first.election()
    await second.election.resign()
    assert not second.election.leads
    await first.election()
    assert [each.election.leads for each in pair] == [True, False]
    assert (first.told, second.told) == ([True, False, True], [True, False])


async def test_a_leader_cut_off_from_the_database_stops_by_itself(
    pair: tuple[Candidate, Candidate], postgres_server: postgres.Server, postgres_url: str
) -> None:
    first, _ = pair
    await first.election()
    ran: list[int] = []

    async def work() -> dt.datetime | None:
        ran.append(1)
        return None

    gated = first.election.gate(work)
    name = postgres_url.split("///")[1].split("?", maxsplit=1)[0]
    postgres_server.shut_out(name)
    for _ in range(3):
        first.clock.advance(TTL / 4)
        with pytest.raises(errors.Unavailable):
            await first.election()
        await gated()
    assert ran == [1, 1]
    assert first.told == [True, False]
    postgres_server.let_in(name)
    await first.election()
    assert first.election.leads
