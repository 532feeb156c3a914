"""Which sequence has which slot, what runs now, who waits and who has been idle for too long: a pure policy.

Sequence batching as Triton's model configuration knows it (`ModelSequenceBatching`). Every live sequence has a slot of one
instance, a lane here, or waits in the backlog until one is free; its requests run one after the other in their order.
Direct lanes run slots as rows of a batch, rows of slots without a request being left empty; the others run dense
batches of the sequences that are ready. A request that is dropped counts as never asked, but for the bounds it set: the
next one is then the first, or the one before it the last. Times are nanoseconds on one monotonic clock. Not safe for
several threads at once.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Hashable, Iterator
from typing import Any

from gpu_worker.engine import batching

Id = int | str


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How sequences share instances: `slots` on each of them.

    Where `direct`, a batch runs once that share `utilization` of the slots is ready or the oldest request has waited for
    `batching.max_delay_ns`; elsewhere `batching` decides on the ready requests. `fresh` is the shape of a new sequence's
    state: requests whose states differ in shape share no batch.
    """

    slots: int = 1
    direct: bool = True
    max_idle_ns: int = 1_000_000_000
    utilization: float = 0.0
    batching: batching.Config = dataclasses.field(default_factory=batching.Config)
    fresh: Hashable = ()


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """One request of a sequence; `item` is the user's own.

    Requests of equal `key` may share a batch. At `patience_ns` a sequence that waits in the backlog gives up.
    """

    id: Id
    start: bool
    end: bool
    arrival_ns: int
    key: Hashable = ()
    patience_ns: int | None = None
    item: Any = None
    number: int = 0
    waits: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class Sequence:
    """A live sequence, known since its first request came; `state` is the user's own, of that `shape`, None where it begins.

    `ending` tells that the last request that came is its end, `begins_next` that whatever comes next is a beginning.
    """

    id: Id
    shape: Hashable
    since: int
    waiting: collections.deque[Request] = dataclasses.field(default_factory=collections.deque)
    lane: Lane | None = None
    slot: int = 0
    running: Request | None = None
    ending: bool = False
    begins_next: bool = False
    patience_ns: int | None = None
    state: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A request whose turn it is; `begins` tells that it is the first of its sequence."""

    request: Request
    sequence: Sequence
    begins: bool
    key: Hashable
    size: int = 1

    @property
    def arrival_ns(self) -> int:
        return self.request.arrival_ns


@dataclasses.dataclass(slots=True, eq=False)
class Lane:
    """What one instance serves. `ready` are the sequences of which a request can run now, in the order they became so."""

    number: int
    slots: dict[int, Sequence] = dataclasses.field(default_factory=dict)
    ready: dict[Sequence, None] = dataclasses.field(default_factory=dict)
    running: tuple[Row, ...] = ()
    freed: list[int] = dataclasses.field(default_factory=list)
    touched: int = 0
    gone: bool = False

    def lowest(self) -> int:
        """The lowest slot that is free."""
        return self.freed[0] if self.freed else self.touched


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """Run these rows now, None where a slot has nothing to run; or, without any, look again at that moment."""

    rows: tuple[Row | None, ...] = ()
    wait_until_ns: int | None = None


_NOTHING = Decision()
_FEW = 64


class Table:
    """The sequences of one model version."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._sequences: dict[Id, Sequence] = {}
        self._lanes: list[Lane] = []
        self._backlog: list[tuple[int, Sequence]] = []
        self._impatient: list[tuple[int, int, Sequence]] = []
        self._idle: dict[Sequence, int] = {}
        self._changed: set[Lane] = set()
        self._count = 0
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def requests(self) -> Iterator[Request]:
        """All that wait."""
        for sequence in self._sequences.values():
            yield from sequence.waiting

    def changed(self) -> set[Lane]:
        """The lanes that got something to run since this was last asked."""
        changed, self._changed = self._changed, set()
        return changed

    def open(self, now_ns: int) -> Lane:
        """A lane for one more instance."""
        self._count += 1
        lane = Lane(self._count)
        self._lanes.append(lane)
        self._fill(now_ns)
        return lane

    def close(self, lane: Lane, now_ns: int) -> None:
        """The instance is to leave: its sequences go on elsewhere, before those that have not begun."""
        lane.gone = True
        self._lanes.remove(lane)
        for sequence in list(lane.slots.values()):
            if sequence.running is None:
                self._queue(sequence, lane)
        self._fill(now_ns)

    def finish(self) -> None:
        """No more requests will come: nobody waits for company, and a sequence without a request is over."""
        hurried = dataclasses.replace(self._config.batching, max_delay_ns=0)
        self._config = dataclasses.replace(self._config, max_idle_ns=0, utilization=0.0, batching=hurried)
        self._changed.update(self._lanes)

    def admit(self, request: Request, now_ns: int) -> bool:
        """Takes the request in; False where it begins no sequence and belongs to none."""
        sequence = self._sequences.get(request.id)
        known = sequence is not None and (sequence.begins_next or not sequence.ending)
        if not request.start and not known:
            return False
        self._count += 1
        request.number, request.waits = self._count, True
        self.waiting += 1
        if sequence is None:
            sequence = self._sequences[request.id] = Sequence(request.id, self._config.fresh, request.number)
            self._add(sequence, request)
            self._enter(sequence)
            self._fill(now_ns)
        else:
            self._add(sequence, request)
            self._look(sequence, now_ns)
        return True

    def conflicts(self, request: Request) -> bool:
        """Whether the request, which is not admitted yet, begins a sequence whose earlier one has not ended."""
        sequence = self._sequences.get(request.id)
        return request.start and sequence is not None and not sequence.ending

    def heads(self, lane: Lane) -> list[Request]:
        """What would run next there."""
        return [sequence.waiting[0] for sequence in lane.ready]

    def take(self, lane: Lane, now_ns: int) -> Decision:
        """What that lane, which runs nothing, is to do now."""
        decision = self._direct(lane, now_ns) if self._config.direct else self._oldest(lane, now_ns)
        rows = tuple(row for row in decision.rows if row is not None)
        for row in rows:
            self._begin(row)
            del lane.ready[row.sequence]
        lane.running = rows
        return decision

    def done(self, lane: Lane, now_ns: int) -> None:
        """What the lane was given has run."""
        rows, lane.running = lane.running, ()
        for row in rows:
            sequence = row.sequence
            sequence.running = None
            if row.request.end:
                self._end(sequence)
            elif lane.gone:
                self._queue(sequence, lane)
            else:
                self._look(sequence, now_ns)
        self._fill(now_ns)

    def drop(self, request: Request, now_ns: int) -> None:
        """Takes out a request that waits, and hands the bounds that it set to its neighbours."""
        sequence = self._sequences[request.id]
        index = sequence.waiting.index(request)
        before = sequence.waiting[index - 1] if index else sequence.running
        self._remove(sequence, request)
        after = sequence.waiting[index] if index < len(sequence.waiting) else None
        if request.start and not request.end and after is not None:
            after.start = True
        elif request.start and not request.end:
            sequence.begins_next = True
        if request.end and before is not None:
            before.end = True
        if after is None:
            sequence.ending = before is not None and before.end
        if request.end and before is None:
            self._end(sequence)
            self._fill(now_ns)
        else:
            self._look(sequence, now_ns)

    def expire(self, now_ns: int) -> list[Request]:
        """Forgets sequences that have been idle for too long; gives the requests of those that waited in vain for a slot."""
        while self._idle:
            sequence, since_ns = next(iter(self._idle.items()))
            if now_ns < since_ns + self._config.max_idle_ns:
                break
            del self._idle[sequence]
            self._end(sequence)
        refused: list[Request] = []
        while (moment_ns := self._next_impatient()) is not None and moment_ns <= now_ns:
            refused += self._give_up(heapq.heappop(self._impatient)[2])
        self._fill(now_ns)
        return refused

    def next_expiry_ns(self) -> int | None:
        """When `expire` has something to do, if nothing else happens before."""
        moments = [self._next_impatient()]
        if self._idle:
            moments.append(next(iter(self._idle.values())) + self._config.max_idle_ns)
        return min((moment for moment in moments if moment is not None), default=None)

    def clear(self) -> list[Request]:
        """Takes out all that waits; the sequences are over."""
        left = sorted(self.requests(), key=lambda request: request.number)
        for request in left:
            request.waits = False
        for sequence in self._sequences.values():
            sequence.waiting.clear()
            if sequence.running is not None:
                sequence.running.end = True
        for lane in self._lanes:
            lane.ready.clear()
        for sequence in [each for each in self._sequences.values() if each.running is None]:
            self._forget(sequence)
        self.waiting = 0
        return left

    def _add(self, sequence: Sequence, request: Request) -> None:
        request.start = request.start or sequence.begins_next
        sequence.begins_next = False
        sequence.waiting.append(request)
        sequence.ending = request.end
        self._idle.pop(sequence, None)
        if sequence.lane is None and request.patience_ns is not None:
            sequence.patience_ns = min(request.patience_ns, sequence.patience_ns or request.patience_ns)
            self._note_patience(sequence)

    def _note_patience(self, sequence: Sequence) -> None:
        if len(self._impatient) > _FEW + 4 * len(self._backlog):
            # Whoever has got a slot needs no patience, however long it was to last.
            self._impatient = [entry for entry in self._impatient if _impatient(entry)]
            heapq.heapify(self._impatient)
        self._count += 1
        heapq.heappush(self._impatient, (sequence.patience_ns or 0, self._count, sequence))

    def _remove(self, sequence: Sequence, request: Request) -> None:
        sequence.waiting.remove(request)
        request.waits = False
        self.waiting -= 1
        if sequence.lane is not None and not sequence.waiting:
            sequence.lane.ready.pop(sequence, None)

    def _begin(self, row: Row) -> None:
        sequence = row.sequence
        sequence.running = row.request
        self._remove_first(sequence)
        if row.begins:
            sequence.state, sequence.shape = None, self._config.fresh

    def _remove_first(self, sequence: Sequence) -> None:
        sequence.waiting.popleft().waits = False
        self.waiting -= 1

    def _look(self, sequence: Sequence, now_ns: int) -> None:
        """Lets the sequence run where it can, or counts it as idle."""
        if sequence.running is not None:
            return
        if not sequence.waiting:
            self._idle.setdefault(sequence, now_ns)
        elif sequence.lane is not None and sequence not in sequence.lane.ready:
            sequence.lane.ready[sequence] = None
            self._changed.add(sequence.lane)

    def _end(self, sequence: Sequence) -> None:
        """The sequence is over; another of its name that waits behind it is a new one."""
        self._leave(sequence)
        self._idle.pop(sequence, None)
        sequence.state, sequence.shape = None, self._config.fresh
        if not sequence.waiting:
            self._forget(sequence)
            return
        sequence.since = sequence.waiting[0].number
        sequence.waiting[0].start = True
        patience = [each.patience_ns for each in sequence.waiting if each.patience_ns is not None]
        sequence.patience_ns = min(patience, default=None)
        if sequence.patience_ns is not None:
            self._note_patience(sequence)
        self._enter(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self._leave(sequence)
        self._idle.pop(sequence, None)
        sequence.since = 0
        del self._sequences[sequence.id]

    def _give_up(self, sequence: Sequence) -> list[Request]:
        left = list(sequence.waiting)
        for request in left:
            self._remove(sequence, request)
        self._forget(sequence)
        return left

    def _queue(self, sequence: Sequence, lane: Lane) -> None:
        """From a lane that goes back to the backlog, with all that it has."""
        lane.slots.pop(sequence.slot)
        lane.ready.pop(sequence, None)
        sequence.lane, sequence.patience_ns = None, None
        self._enter(sequence)

    def _enter(self, sequence: Sequence) -> None:
        heapq.heappush(self._backlog, (sequence.since, sequence))

    def _leave(self, sequence: Sequence) -> None:
        """Gives its slot back."""
        lane = sequence.lane
        if lane is None:
            return
        del lane.slots[sequence.slot]
        lane.ready.pop(sequence, None)
        sequence.lane = None
        if lane.slots:
            heapq.heappush(lane.freed, sequence.slot)
        else:
            lane.freed, lane.touched = [], 0

    def _fill(self, now_ns: int) -> None:
        """Gives free slots, the lowest first, to those that have waited longest in the backlog."""
        while self._lanes and (sequence := self._next_in_backlog()) is not None:
            lane = min(self._lanes, key=lambda each: (each.lowest(), each.number))
            slot = lane.lowest()
            if slot >= self._config.slots:
                return
            heapq.heappop(self._backlog)
            if lane.freed:
                heapq.heappop(lane.freed)
            else:
                lane.touched += 1
            lane.slots[slot] = sequence
            sequence.lane, sequence.slot = lane, slot
            self._look(sequence, now_ns)

    def _next_in_backlog(self) -> Sequence | None:
        while self._backlog:
            since, sequence = self._backlog[0]
            if sequence.lane is None and sequence.since == since:
                return sequence
            heapq.heappop(self._backlog)
        return None

    def _next_impatient(self) -> int | None:
        while self._impatient:
            if _impatient(self._impatient[0]):
                return self._impatient[0][0]
            heapq.heappop(self._impatient)
        return None

    def _row(self, sequence: Sequence) -> Row:
        request = sequence.waiting[0]
        shape = self._config.fresh if request.start else sequence.shape
        return Row(request, sequence, request.start, (request.key, shape))

    def _direct(self, lane: Lane, now_ns: int) -> Decision:
        if not lane.ready:
            return _NOTHING
        rows = [self._row(sequence) for sequence in lane.ready]
        oldest = min(rows, key=lambda row: row.request.number)
        by_slot = {row.sequence.slot: row for row in rows if row.key == oldest.key}
        due_ns = oldest.arrival_ns + self._config.batching.max_delay_ns
        if len(by_slot) < self._config.utilization * self._config.slots and now_ns < due_ns:
            return Decision(wait_until_ns=due_ns)
        return Decision(tuple(by_slot.get(slot) for slot in range(max(by_slot) + 1)))

    def _oldest(self, lane: Lane, now_ns: int) -> Decision:
        rows = [self._row(sequence) for sequence in lane.ready]
        decision = batching.decide(rows, now_ns, self._config.batching)
        return Decision(tuple(rows[: decision.take]), decision.wait_until_ns)


def _impatient(entry: tuple[int, int, Sequence]) -> bool:
    """Whether that sequence still waits for a slot, and until then at most."""
    moment_ns, _, sequence = entry
    return bool(sequence.since) and sequence.lane is None and sequence.patience_ns == moment_ns
