"""Of several servers with clocks of their own, stopped and cut off at will, one leads at a time, and somebody always will."""

from __future__ import annotations

import dataclasses
import datetime as dt

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st

from tms_server.ports import store as port
from tms_server.reconcilers import election
from tms_server.testing import clock as fake_clock

TTL = dt.timedelta(seconds=12)
SECOND = dt.timedelta(seconds=1)
SERVERS = st.sampled_from("ab")
OFFSETS = st.timedeltas(min_value=-dt.timedelta(days=1), max_value=dt.timedelta(days=1))


@dataclasses.dataclass
class Server:
    """One server between the steps of its pass. A write is begun, may reach the database, and may be confirmed."""

    offset: dt.timedelta
    standing: election.Standing
    writing: tuple[port.Leader | None, port.Leader, dt.datetime] | None = None
    applied: bool = False


class Elections(stateful.RuleBasedStateMachine):
    """The row lives in `row`; true time in `now`, which no server knows."""

    @stateful.initialize(offsets=st.tuples(OFFSETS, OFFSETS))
    def start(self, offsets: tuple[dt.timedelta, ...]) -> None:
        self.now = fake_clock.START
        self.row: port.Leader | None = None
        self.servers = {
            name: Server(offset, election.Standing(me=name, ttl=TTL))
            for name, offset in zip("ab", offsets, strict=True)
        }

    @stateful.rule(span=st.sampled_from([SECOND, TTL / 3, TTL / 3 + SECOND, TTL / 2, TTL]))
    def time_passes(self, span: dt.timedelta) -> None:
        self.now += span

    @stateful.rule(name=SERVERS)
    def looks(self, name: str) -> None:
        server = self.servers[name]
        if server.writing is not None:
            return
        server.standing = server.standing.saw(self.row, self.now + server.offset)
        verdict = election.decide(server.standing, self.now + server.offset)
        if verdict.write is not None:
            server.writing = (self.row, verdict.write, self.now + server.offset)

    @stateful.rule(name=SERVERS)
    def passes(self, name: str) -> None:
        self.looks(name)
        self.write_arrives(name)
        self.write_ends(name, told=True)

    @stateful.rule(name=SERVERS)
    def write_arrives(self, name: str) -> None:
        server = self.servers[name]
        if server.writing is not None and not server.applied:
            expected, new, _ = server.writing
            server.applied = self.row == expected
            self.row = new if server.applied else self.row

    @stateful.rule(name=SERVERS, told=st.booleans())
    def write_ends(self, name: str, told: bool) -> None:  # noqa: FBT001 - drawn by name
        server = self.servers[name]
        if server.writing is None:
            return
        _, new, began = server.writing
        if told and server.applied:
            server.standing = server.standing.wrote(new, began, self.now + server.offset)
        server.writing, server.applied = None, False

    @stateful.rule(name=SERVERS)
    def steps_down(self, name: str) -> None:
        server = self.servers[name]
        held = server.standing.held
        if server.writing is None and held is not None and self._leads(server):
            server.standing = dataclasses.replace(server.standing, held=None)
            self.row = dataclasses.replace(held, holder="") if self.row == held else self.row

    def teardown(self) -> None:
        """Somebody leads soon once nothing is in the way."""
        if not hasattr(self, "servers"):
            return
        for server in self.servers.values():
            server.writing, server.applied = None, False
        for _ in range(6):
            self.now += TTL / 4
            for name in self.servers:
                self.passes(name)
                self.at_most_one_leads()
        assert any(self._leads(each) for each in self.servers.values())

    @stateful.invariant()
    def at_most_one_leads(self) -> None:
        if hasattr(self, "servers"):
            assert sum(self._leads(each) for each in self.servers.values()) <= 1

    def _leads(self, server: Server) -> bool:
        until = server.standing.leads_until()
        return until is not None and self.now + server.offset < until


TestElections = Elections.TestCase
TestElections.settings = hypothesis.settings(max_examples=150, stateful_step_count=25, deadline=None)


def test_a_follower_waits_and_then_takes_over() -> None:
    start = fake_clock.START
    row = port.Leader(term=4, holder="other", beat=9)
    standing = election.Standing(me="me", ttl=TTL).saw(row, start)
    assert election.decide(standing, start).write is None
    again = standing.saw(row, start + TTL - SECOND)
    assert election.decide(again, start + TTL - SECOND) == election.Verdict(write=None, look_at=start + TTL)
    assert election.decide(again, start + TTL).write == port.Leader(term=5, holder="me")
    beat = again.saw(dataclasses.replace(row, beat=10), start + TTL)
    assert election.decide(beat, start + TTL).write is None


def test_who_stepped_down_is_followed_at_once() -> None:
    standing = election.Standing(me="me", ttl=TTL).saw(port.Leader(term=4, holder=""), fake_clock.START)
    assert election.decide(standing, fake_clock.START).write == port.Leader(term=5, holder="me")


def test_a_leader_counts_from_before_it_began_to_write() -> None:
    start = fake_clock.START
    row = port.Leader(term=1, holder="me")
    standing = election.Standing(me="me", ttl=TTL).wrote(row, start, start + 5 * SECOND)
    assert standing.leads_until() == start + TTL * 2 / 3
    assert election.decide(standing, start + SECOND) == election.Verdict(write=None, look_at=start + TTL / 3)
    assert election.decide(standing, start + TTL / 3).write == dataclasses.replace(row, beat=1)


def test_what_became_of_a_beat_unknown_only_a_new_one_says_from_when_to_count() -> None:
    start = fake_clock.START
    standing = election.Standing(me="me", ttl=TTL).wrote(port.Leader(term=1, holder="me"), start, start)
    unsure = standing.saw(port.Leader(term=1, holder="me", beat=1), start + SECOND)
    assert unsure.leads_until() is None
    assert election.decide(unsure, start + SECOND).write == port.Leader(term=1, holder="me", beat=2)
