"""The laws of sequence batching, over scripted requests on a virtual clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import hypothesis
import pytest
from hypothesis import strategies

from gpu_worker.engine import batching, sequences

IDLE_NS = 20


@dataclasses.dataclass(frozen=True)
class Ask:
    id: int
    start: bool
    end: bool
    key: str = ""
    patience: int | None = None


Step = Ask | tuple[str, int]


@dataclasses.dataclass
class Known:
    """What the protocol says of one id: whether requests without start may come, and when it was heard of last."""

    open: bool = False
    pending: int = 0
    quiet_since_ns: int = 0


class World:
    """A table, its instances and clock, and what it owes; each step keeps the laws."""

    def __init__(self, config: sequences.Config, lanes: int) -> None:
        self.config = config
        self.table = sequences.Table(config)
        self.now_ns = 0
        self.lanes = [self.table.open(0) for _ in range(lanes)]
        self.busy: dict[sequences.Lane, tuple[sequences.Row, ...]] = {}
        self.known: dict[sequences.Id, Known] = {}
        self.ran: dict[sequences.Id, list[sequences.Row]] = {}
        self.places: dict[sequences.Id, tuple[int, int]] = {}
        self.owed: set[sequences.Request] = set()
        self.asked: dict[sequences.Request, Ask] = {}
        self.dropped = False
        self.moved = False

    def step(self, step: Step) -> None:
        self.expire()
        if isinstance(step, Ask):
            self.ask(step)
        else:
            name, number = step
            getattr(self, name)(number)
        self.check()

    def ask(self, ask: Ask) -> None:
        patience = None if ask.patience is None else self.now_ns + ask.patience
        request = sequences.Request(ask.id, ask.start, ask.end, self.now_ns, ask.key, patience)
        known = self.known.setdefault(ask.id, Known())
        admitted = self.table.admit(request, self.now_ns)
        if not self.dropped:
            assert admitted is (ask.start or known.open)
        if admitted:
            known.open, known.pending = not ask.end, known.pending + 1
            self.owed.add(request)
            self.asked[request] = ask

    def tick(self, number: int) -> None:
        self.now_ns += number

    def take(self, number: int) -> None:
        lane = self.lanes[number % len(self.lanes)]
        if lane in self.busy:
            return
        decision = self.table.take(lane, self.now_ns)
        rows = tuple(row for row in decision.rows if row is not None)
        if decision.wait_until_ns is not None:
            assert decision.wait_until_ns > self.now_ns
            assert not rows
        if rows:
            self.busy[lane] = rows
            self.started(lane, decision.rows)

    def started(self, lane: sequences.Lane, batch: Sequence[sequences.Row | None]) -> None:
        rows = [row for row in batch if row is not None]
        assert batch[-1] is not None, "no row beyond the last that is used"
        assert len(batch) <= max(1, self.config.slots)
        assert len({row.key for row in rows}) == 1
        assert len({row.sequence.id for running in self.busy.values() for row in running}) == sum(
            map(len, self.busy.values())
        ), "one at a time of a sequence"
        for index, row in enumerate(batch):
            if row is None:
                assert self.config.direct
                continue
            if self.config.direct:
                assert row.sequence.slot == index
            self.follow(lane, row)

    def follow(self, lane: sequences.Lane, row: sequences.Row) -> None:
        self.owed.remove(row.request)
        before = self.ran.setdefault(row.sequence.id, [])
        if before:
            assert before[-1].request.number < row.request.number, "in the order in which they came"
        if not self.dropped:
            assert row.begins is self.asked[row.request].start
        if not before or before[-1].request.end:
            assert row.begins
        elif not self.moved and before[-1].sequence is row.sequence:
            assert self.places[row.sequence.id] == (lane.number, row.sequence.slot), "a sequence keeps its place"
        before.append(row)
        self.places[row.sequence.id] = lane.number, row.sequence.slot

    def done(self, number: int) -> None:
        if not self.busy:
            return
        lane = list(self.busy)[number % len(self.busy)]
        rows = self.busy.pop(lane)
        self.table.done(lane, self.now_ns)
        for row in rows:
            self.gone(row.request)

    def gone(self, request: sequences.Request) -> None:
        known = self.known[request.id]
        known.pending -= 1
        known.quiet_since_ns = self.now_ns

    def drop(self, number: int) -> None:
        waiting = list(self.table.requests())
        if waiting:
            request = waiting[number % len(waiting)]
            self.dropped = True
            self.table.drop(request, self.now_ns)
            self.owed.remove(request)
            self.gone(request)

    def resize(self, number: int) -> None:
        if number % 2 and len(self.lanes) > 1:
            self.moved = True
            self.table.close(self.lanes.pop(number % len(self.lanes)), self.now_ns)
        elif len(self.lanes) < 4:
            self.lanes.append(self.table.open(self.now_ns))

    def expire(self) -> None:
        for request in self.table.expire(self.now_ns):
            assert request.id not in {row.sequence.id for rows in self.busy.values() for row in rows}
            self.owed.remove(request)
            self.gone(request)
            self.known[request.id].open = False
        for known in self.known.values():
            if not known.pending and self.now_ns >= known.quiet_since_ns + IDLE_NS:
                known.open = False
        moment_ns = self.table.next_expiry_ns()
        assert moment_ns is None or moment_ns > self.now_ns

    def check(self) -> None:
        assert set(self.table.requests()) == self.owed
        assert self.table.waiting == len(self.owed)
        free = False
        for lane in self.lanes:
            assert len(lane.slots) <= self.config.slots
            assert all(each.lane is lane and each.slot == slot for slot, each in lane.slots.items())
            free = free or len(lane.slots) < self.config.slots
        if free:
            held = {each.id for lane in {*self.lanes, *self.busy} for each in lane.slots.values()}
            assert {each.id for each in self.owed} <= held, "nobody waits for a slot while there is one"

    def end(self) -> None:
        """All that is owed runs, and nothing is left."""
        self.table.finish()
        for _ in range(10_000):
            self.expire_finished()
            if not self.owed and not self.busy:
                break
            for number in range(len(self.lanes)):
                self.take(number)
            self.done(0)
        assert not self.owed
        self.expire_finished()
        assert len(self.table) == 0
        assert self.table.waiting == 0
        assert not any(lane.slots or lane.ready for lane in self.lanes)

    def expire_finished(self) -> None:
        for request in self.table.expire(self.now_ns):
            self.owed.remove(request)


asks = strategies.builds(
    Ask,
    strategies.integers(1, 6),
    strategies.booleans(),
    strategies.sampled_from([False, False, True]),
    strategies.sampled_from(["", "", "", "other"]),
    strategies.sampled_from([None, None, None, 5]),
)


def _named(*names: str) -> strategies.SearchStrategy[tuple[str, int]]:
    return strategies.tuples(strategies.sampled_from(names), strategies.integers(0, 30))


steps = strategies.lists(
    strategies.one_of(asks, asks, _named("take", "done"), _named("take", "done", "tick")), max_size=80
)
troubled = strategies.lists(
    strategies.one_of(asks, asks, _named("take", "done"), _named("tick", "drop", "resize", "take")), max_size=80
)


@strategies.composite
def configs(draw: strategies.DrawFn) -> sequences.Config:
    slots = draw(strategies.integers(1, 4))
    delay_ns = draw(strategies.sampled_from([0, 7]))
    direct = draw(strategies.booleans())
    preferred = draw(strategies.frozensets(strategies.integers(1, slots), max_size=2))
    return sequences.Config(
        slots=slots,
        direct=direct,
        max_idle_ns=IDLE_NS,
        utilization=draw(strategies.sampled_from([0.0, 0.5, 1.0])),
        batching=batching.Config(slots, draw(strategies.booleans()), preferred, delay_ns),
    )


@hypothesis.given(configs(), strategies.integers(1, 3), steps)
@hypothesis.settings(max_examples=300, deadline=None)
def test_sequences_run_in_order_each_in_its_place_and_none_is_lost(
    config: sequences.Config, lanes: int, script: list[Step]
) -> None:
    world = World(config, lanes)
    for step in script:
        world.step(step)
    world.end()


@hypothesis.given(configs(), strategies.integers(1, 3), troubled)
@hypothesis.settings(max_examples=300, deadline=None)
def test_the_laws_hold_whatever_is_dropped_and_whoever_leaves(
    config: sequences.Config, lanes: int, script: list[Step]
) -> None:
    world = World(config, lanes)
    for step in script:
        world.step(step)
    world.end()


@hypothesis.given(configs(), steps)
@hypothesis.settings(max_examples=100, deadline=None)
def test_what_is_cleared_is_given_back_in_order_and_forgotten(config: sequences.Config, script: list[Step]) -> None:
    world = World(config, 2)
    for step in script:
        world.step(step)
    left = world.table.clear()
    assert set(left) == world.owed
    assert [each.number for each in left] == sorted(each.number for each in left)
    world.owed.clear()
    while world.busy:
        world.done(0)
    assert len(world.table) == 0


DIRECT = sequences.Config(slots=3, max_idle_ns=IDLE_NS)


def _ask(table: sequences.Table, name: int, now_ns: int = 0, **more: int | bool) -> sequences.Request:
    request = sequences.Request(name, bool(more.get("start")), bool(more.get("end")), now_ns)
    if "patience_ns" in more:
        request.patience_ns = int(more["patience_ns"])
    assert table.admit(request, now_ns)
    return request


def _taken(table: sequences.Table, lane: sequences.Lane, now_ns: int = 0) -> list[int | str | None]:
    return [None if row is None else row.sequence.id for row in table.take(lane, now_ns).rows]


def test_slots_without_a_request_are_left_empty_up_to_the_last_that_has_one() -> None:
    table = sequences.Table(DIRECT)
    lane = table.open(0)
    for name in (1, 2, 3):
        _ask(table, name, start=True)
    assert _taken(table, lane) == [1, 2, 3]
    table.done(lane, 0)
    _ask(table, 2)
    assert _taken(table, lane) == [None, 2]


def test_who_waits_longest_gets_the_slot_that_becomes_free() -> None:
    table = sequences.Table(sequences.Config(slots=1, max_idle_ns=IDLE_NS))
    lane = table.open(0)
    _ask(table, 1, start=True)
    for name in (2, 3):
        _ask(table, name, start=True, end=True)
    assert _taken(table, lane) == [1]
    table.done(lane, 0)
    assert _taken(table, lane) == []
    _ask(table, 1, end=True)
    for name in (1, 2, 3):
        assert _taken(table, lane) == [name]
        table.done(lane, 0)
    assert len(table) == 0


def test_sequences_spread_over_the_instances() -> None:
    table = sequences.Table(DIRECT)
    lanes = [table.open(0), table.open(0)]
    for name in range(1, 5):
        _ask(table, name, start=True)
    assert [_taken(table, lane) for lane in lanes] == [[1, 3], [2, 4]]


def test_an_idle_sequence_is_forgotten_and_its_slot_is_the_next_ones() -> None:
    table = sequences.Table(sequences.Config(slots=1, max_idle_ns=IDLE_NS))
    lane = table.open(0)
    _ask(table, 1, start=True)
    _ask(table, 2, start=True)
    assert _taken(table, lane) == [1]
    assert table.next_expiry_ns() is None, "who runs is not idle"
    table.done(lane, 5)
    assert table.next_expiry_ns() == 5 + IDLE_NS
    assert table.expire(5 + IDLE_NS) == []
    assert _taken(table, lane, 5 + IDLE_NS) == [2]
    assert not table.admit(sequences.Request(1, start=False, end=False, arrival_ns=30), 30)


def test_a_sequence_that_waits_in_vain_is_refused_whole() -> None:
    table = sequences.Table(sequences.Config(slots=1, max_idle_ns=IDLE_NS))
    table.open(0)
    _ask(table, 1, start=True)
    asked = [_ask(table, 2, start=True, patience_ns=9), _ask(table, 2)]
    assert table.next_expiry_ns() == 9
    assert table.expire(8) == []
    assert table.expire(9) == asked
    assert not table.admit(sequences.Request(2, start=False, end=False, arrival_ns=9), 9)


def test_a_new_beginning_ends_the_earlier_sequence_after_what_it_asked() -> None:
    table = sequences.Table(DIRECT)
    lane = table.open(0)
    _ask(table, 1, start=True)
    _ask(table, 1)
    again = sequences.Request(1, start=True, end=False, arrival_ns=0)
    assert table.conflicts(again)
    assert table.admit(again, 0)
    seen = []
    for number in range(3):
        (row,) = table.take(lane, 0).rows
        assert row is not None
        assert row.sequence.state == (None if row.begins else number - 1)
        row.sequence.state = number
        seen.append(row.begins)
        table.done(lane, 0)
    assert seen == [True, False, True]


@pytest.mark.parametrize(("ready", "now_ns", "runs"), [(1, 0, False), (2, 0, True), (1, 7, True)])
def test_a_batch_waits_until_enough_slots_are_ready(ready: int, now_ns: int, runs: bool) -> None:  # noqa: FBT001
    config = dataclasses.replace(DIRECT, utilization=0.5, batching=batching.Config(max_delay_ns=7))
    table = sequences.Table(config)
    lane = table.open(0)
    for name in range(1, ready + 1):
        _ask(table, name, start=True)
    decision = table.take(lane, now_ns)
    assert bool(decision.rows) is runs
    assert decision.wait_until_ns == (None if runs else 7)


def test_states_of_different_shapes_share_no_batch() -> None:
    table = sequences.Table(sequences.Config(slots=4, direct=False, batching=batching.Config(4, dynamic=True)))
    lane = table.open(0)
    _ask(table, 1, start=True)
    (row,) = table.take(lane, 0).rows
    assert row is not None
    row.sequence.shape = (2,)
    table.done(lane, 0)
    _ask(table, 1)
    _ask(table, 2, start=True)
    assert _taken(table, lane) == [1]
    table.done(lane, 0)
    assert _taken(table, lane) == [2]


def test_patience_of_those_who_got_a_slot_is_not_kept() -> None:
    table = sequences.Table(sequences.Config(slots=1))
    lane = table.open(0)
    _ask(table, 1, start=True)
    for name in range(2, 2000):
        _ask(table, name, start=True, end=True, patience_ns=2**60 + name)
        _ask(table, name - 1, end=True) if name == 2 else None
        _taken(table, lane)
        table.done(lane, 0)
    assert len(table._impatient) < 200
