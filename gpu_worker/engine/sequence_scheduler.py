"""The sequences of one model version and the threads that serve them, one for each instance.

A thin shell: which sequence has which slot and what runs when is `sequences`' to decide, what the model is told of them
`controls`', how it runs `running`'s. A request whose client has gone or whose deadline has passed never runs; it is answered
when it is its turn or an instance next looks. `timeout` bounds how long a sequence waits for a slot.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import threading
import time
from collections.abc import Iterable, Sequence

import structlog

from gpu_worker.engine import (
    border,
    controls,
    crew,
    delivery,
    execution,
    regions,
    running,
    sequences,
    spec,
    statistics,
    tracing,
    work,
)
from gpu_worker.runtime import port

# Configurations may ask for longer than a lock can wait; whoever wakes early looks again.
_LONGEST_WAIT_S = 3600.0
_FEW = 64
_MOST_CHARACTERS = 128

log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True)
class _Desk:
    """Where an instance finds its work, and is woken, once its thread has `taken` it."""

    lane: sequences.Lane
    condition: threading.Condition
    taken: bool = False


@dataclasses.dataclass(slots=True)
class _Batch:
    rows: tuple[sequences.Row | None, ...]
    dead: running.Pairs
    ticket: int


class SequenceScheduler:
    """Serves one model version from its making until `stop`. Only `join` blocks."""

    def __init__(
        self, model: spec.ModelSpec, programs: Sequence[port.Program], counters: statistics.Statistics
    ) -> None:
        if model.sequencing is None:
            raise ValueError(f"model '{model.name}' has no sequences")
        self.spec = model
        self._sequencing = model.sequencing
        self._runner = running.Runner(model, counters)
        self._lock = threading.Lock()
        self._table = sequences.Table(model.sequencing.policy)
        self._deadlines: list[tuple[int, int, sequences.Request]] = []
        self._running = 0
        self._closing = False
        self._ordered = running.Ordered(self._post) if model.preserve_ordering else None
        self._desks: dict[crew.Instance, _Desk] = {}
        self._crew = crew.Crew(f"{model.name}_{model.version}", self._serve)
        self.settle(self.prepare(programs))

    def prepare(self, programs: Sequence[port.Program]) -> crew.Change:
        """Starts what is missing to serve through these, one instance for each entry; serves as before until `settle`.

        Raises LoadFailed where the system refuses a thread; nothing has changed then.
        """
        with self._lock:
            return self._crew.prepare(programs, begin=not self._closing)

    def drop(self, change: crew.Change) -> None:
        """Ends what was prepared, and serves on as before."""
        self._crew.drop(change)

    def settle(self, change: crew.Change) -> None:
        """Serves as was prepared from now on. Does not block.

        Instances that stay keep their sequences; those of the others go on elsewhere after what runs.
        """
        with self._lock:
            leaving = self._crew.settle(change)
            now_ns = time.monotonic_ns()
            for instance in self._crew.instances:
                if instance not in self._desks:
                    self._desks[instance] = _Desk(self._table.open(now_ns), threading.Condition(self._lock))
            for instance in leaving:
                self._dismiss(instance, now_ns)
            self._wake()

    def _dismiss(self, instance: crew.Instance, now_ns: int) -> None:
        desk = self._desks.get(instance)
        if desk is None:
            return
        self._table.close(desk.lane, now_ns)
        desk.condition.notify()
        if not desk.taken:
            # Its thread may never come.
            del self._desks[instance]

    @property
    def available(self) -> bool:
        """Whether any instance can run what comes."""
        return True

    def waiting(self) -> statistics.Waiting:
        """What has no answer yet."""
        with self._lock:
            return statistics.Waiting(self._table.waiting, self._table.waiting + self._running)

    def submit(
        self,
        requests: Iterable[border.InferRequest],
        loop: asyncio.AbstractEventLoop,
        arrival_ns: int,
        shared: regions.Regions,
        tracer: tracing.Tracer = tracing.NOBODY,
    ) -> list[delivery.Answered]:
        """Takes the requests in; gives back those that are refused, with the reason."""
        works, refused = self._runner.admit(requests, loop, arrival_ns, shared, tracer)
        dead: running.Pairs = []
        over: running.Pairs = []
        with self._lock:
            if self._closing:
                return refused + [(each.request.reply, running.stopping()) for each in works]
            now_ns = time.monotonic_ns()
            dead += self._expired(now_ns)
            for each in works:
                try:
                    self._admit(each, now_ns)
                except border.InferenceError as error:
                    over.append((each, error.bare()))
                except Exception as error:  # noqa: BLE001 - whatever a request holds, it gets its answer
                    over.append((each, running.malformed(error, each.request.id)))
            self._wake()
        self._runner.bury(dead)
        self._runner.fail(statistics.OTHER, [each for each, _ in over])
        return refused + [(each.request.reply, answer) for each, answer in over]

    def stop(self) -> None:
        """Takes nothing more; what waits and runs will finish. Does not block."""
        with self._lock:
            self._closing = True
            self._table.finish()
            self._wake()

    def abandon(self) -> None:
        """Takes nothing more and answers what waits with the stopping error. Does not block."""
        with self._lock:
            left: list[work.Work] = [request.item for request in self._table.clear()]
        self.stop()
        self._runner.fail(statistics.REJECTED, left)
        delivery.post([(each, running.stopping()) for each in left])

    def join(self, until_s: float) -> bool:
        """Blocks until all threads have ended, at most until that monotonic time; true if they have."""
        return self._crew.join(until_s)

    def _admit(self, each: work.Work, now_ns: int) -> None:
        request = _request(self.spec, self._sequencing, each)
        if self._table.conflicts(request):
            log.warning("sequence.restarted", model=self.spec.name, sequence=request.id)
        if not self._table.admit(request, now_ns):
            raise _invalid(
                f"inference request for sequence {request.id} to model '{self.spec.name}' must specify the START flag on "
                "the first request of the sequence"
            )
        if each.deadline_ns is not None:
            self._note_deadline(each.deadline_ns, request)
        if each.deadline_ns is not None or request.patience_ns is not None:
            # Nobody waits for that moment yet.
            for desk in self._desks.values():
                desk.condition.notify()

    def _note_deadline(self, deadline_ns: int, request: sequences.Request) -> None:
        if len(self._deadlines) > _FEW + 2 * self._table.waiting:
            # What has run is not to be kept until its deadline.
            self._deadlines = [entry for entry in self._deadlines if entry[2].waits]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline_ns, request.number, request))

    def _wake(self) -> None:
        """Wakes the instances that have got something to run, or nothing to wait for any more."""
        changed = self._table.changed()
        over = self._closing and not self._table.waiting
        for desk in self._desks.values():
            if over or desk.lane in changed:
                desk.condition.notify()

    def _serve(self, instance: crew.Instance) -> None:
        while (batch := self._next(instance)) is not None:
            self._runner.bury(batch.dead)
            answers = self._execute(instance.program, batch.rows) if batch.rows else []
            self._done(instance)
            self._deliver(batch.ticket, answers)
            # The answers' memory is the clients' now; do not hold it while waiting.
            del batch, answers

    def _next(self, instance: crew.Instance) -> _Batch | None:
        """Waits for the next batch; None once the instance is to end."""
        with self._lock:
            desk = self._desks.get(instance)
            if desk is None:
                return None
            desk.taken = True
            while True:
                now_ns = time.monotonic_ns()
                dead = self._expired(now_ns) + self._purged(desk.lane, now_ns)
                self._wake()
                if dead:
                    return _Batch((), dead, self._ticket())
                if instance.leaving:
                    self._forget(instance)
                    return None
                decision = self._table.take(desk.lane, now_ns)
                if decision.rows:
                    self._running += sum(row is not None for row in decision.rows)
                    return _Batch(decision.rows, [], self._ticket())
                if self._closing and not self._table.waiting:
                    # Else an instance that leaves may still have to hand sequences on.
                    self._table.close(desk.lane, now_ns)
                    self._forget(instance)
                    return None
                self._wait(desk, decision.wait_until_ns, now_ns)

    def _wait(self, desk: _Desk, until_ns: int | None, now_ns: int) -> None:
        moments = [until_ns, self._table.next_expiry_ns(), self._deadlines[0][0] if self._deadlines else None]
        first_ns = min((moment for moment in moments if moment is not None), default=None)
        desk.condition.wait(None if first_ns is None else min((first_ns - now_ns) / 1e9, _LONGEST_WAIT_S))

    def _forget(self, instance: crew.Instance) -> None:
        self._crew.forget(instance)
        del self._desks[instance]

    def _done(self, instance: crew.Instance) -> None:
        with self._lock:
            self._table.done(self._desks[instance].lane, time.monotonic_ns())
            self._wake()

    def _expired(self, now_ns: int) -> running.Pairs:
        """Takes out whose time has passed."""
        dead = [(request.item, _in_vain()) for request in self._table.expire(now_ns)]
        late: list[work.Work] = []
        while self._deadlines and (self._deadlines[0][0] <= now_ns or not self._deadlines[0][2].waits):
            request = heapq.heappop(self._deadlines)[2]
            if request.waits:
                self._table.drop(request, now_ns)
                late.append(request.item)
        return dead + running.ended(late)

    def _purged(self, lane: sequences.Lane, now_ns: int) -> running.Pairs:
        """Takes out those of the next in the lane whose clients have gone."""
        dead: list[work.Work] = []
        while gone := [request for request in self._table.heads(lane) if request.item.request.cancelled]:
            for request in gone:
                self._table.drop(request, now_ns)
                dead.append(request.item)
        return running.ended(dead)

    def _execute(self, program: port.Program, rows: Sequence[sequences.Row | None]) -> running.Pairs:
        started_ns = time.monotonic_ns()
        works = [row.request.item for row in rows if row is not None]
        found, refused = self._runner.readable(works)
        if not found:
            return refused
        try:
            batch, beside, left = self._prepared(rows, set(found))
        except Exception as error:  # noqa: BLE001 - whatever a model's states are, the batch is answered
            return refused + self._runner.failed(error, found)
        answers = self._runner.run(program, batch, started_ns, beside)
        if beside.found:
            controls.keep(left, beside.found)
        return refused + answers

    def _prepared(
        self, rows: Sequence[sequences.Row | None], readable: set[work.Work]
    ) -> tuple[list[work.Work], execution.Beside, list[sequences.Row | None]]:
        """The works of a batch, what goes beside them, and the rows that run."""
        left = [row if row is not None and row.request.item in readable else None for row in rows]
        if not self._sequencing.policy.direct:
            left = [row for row in left if row is not None]
        beside = execution.Beside(
            controls.feeds(self._sequencing, left), tuple(state.output for state in self._sequencing.states)
        )
        if None not in left:
            return [row.request.item for row in left if row is not None], beside, left
        filler = execution.filler(self.spec, next(iter(readable)))
        beside.fillers = frozenset([filler])
        return [filler if row is None else row.request.item for row in left], beside, left

    def _ticket(self) -> int:
        return self._ordered.ticket() if self._ordered else 0

    def _deliver(self, ticket: int, answers: running.Pairs) -> None:
        if self._ordered:
            self._ordered.deliver(ticket, answers)
        elif answers:
            self._post(answers)

    def _post(self, answers: running.Pairs) -> None:
        """Counts the requests as answered before they are: who has an answer does not find itself in flight."""
        with self._lock:
            self._running -= len(answers)
        delivery.post(answers)


def _request(model: spec.ModelSpec, sequencing: controls.Sequencing, each: work.Work) -> sequences.Request:
    """What the request's parameters say of its sequence. Raises InferenceError INVALID_ARGUMENT."""
    if each.size > 1:
        raise _invalid(
            f"inference request to model '{model.name}' must specify batch-size 1 due to requirements of sequence batcher"
        )
    parameters = each.request.parameters
    given = parameters.get("sequence_id", 0)
    if not given or not isinstance(given, int | str):
        raise _invalid(f"inference request to model '{model.name}' must specify a non-zero or non-empty correlation ID")
    if isinstance(given, str) and len(given.encode("utf-8", "surrogatepass")) > _MOST_CHARACTERS:
        raise border.InferenceError(
            border.ErrorKind.UNSUPPORTED, f"string correlation ID cannot be longer than {_MOST_CHARACTERS} characters"
        )
    controls.check_id(model.name, sequencing, given)
    timeout_us = parameters.get("timeout", 0)
    patient = not isinstance(timeout_us, int) or timeout_us <= 0
    return sequences.Request(
        id=given,
        start=bool(parameters.get("sequence_start", False)),
        end=bool(parameters.get("sequence_end", False)),
        arrival_ns=each.arrival_ns,
        key=each.key,
        patience_ns=None if patient else each.arrival_ns + int(timeout_us) * 1000,
        item=each,
    )


def _in_vain() -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.UNAVAILABLE, "timeout of the corresponding sequence has been expired")


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)
