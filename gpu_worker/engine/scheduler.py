"""The queue of one model version and the threads that serve it, one for each instance.

A thin shell: what runs when is `batching`'s to decide, how it runs `execution`'s, and whether it is worth a thread
`pace`'s: a brief batch borrows an idle instance and runs on the event loop. Requests come in lists and answers leave in
lists, one hand-over for a batch. A request whose client has gone or whose time has passed never runs; it is
answered when an instance next looks at the queue. With `preserve_ordering` results leave in the order of arrival,
refusals at once.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from gpu_worker.engine import (
    admission,
    batching,
    border,
    delivery,
    execution,
    pace,
    regions,
    spec,
    statistics,
    trace,
    tracing,
    validation,
    work,
)
from gpu_worker.runtime import port

log = structlog.get_logger(__name__)

# Configurations may ask for longer than a lock can wait; whoever wakes early looks again.
_LONGEST_WAIT_S = 3600.0

# How long a turn of the event loop may run batches itself.
_SPARED_NS = 200_000

_Pairs = list[tuple[work.Work, delivery.Answer]]


def stopping() -> border.InferenceError:
    """What a request gets that comes too late."""
    return border.InferenceError(
        border.ErrorKind.UNAVAILABLE,
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
    )


@dataclasses.dataclass(slots=True, eq=False)
class _Instance:
    """One thread's share: the program that it runs until it is to leave."""

    program: port.Program
    leaving: bool = False


@dataclasses.dataclass(slots=True)
class _Batch:
    works: list[work.Work]
    dead: _Pairs
    ticket: int


class Scheduler:
    """Serves one model version from its making until `stop`. Only `join` blocks."""

    def __init__(
        self, model: spec.ModelSpec, programs: Sequence[port.Program], counters: statistics.Statistics
    ) -> None:
        self.spec = model
        self._admission = admission.Admission(model)
        self._counters = counters
        self._condition = threading.Condition(threading.Lock())
        self._queue: collections.deque[work.Work] = collections.deque()
        self._config = model.batching
        self._pace = pace.Pace()
        self._running = 0
        self._idle = 0
        self._timed = 0
        self._closing = False
        self._made = 0
        self._sequencer = _Sequencer(self._post) if model.preserve_ordering else None
        self._steady = False
        self._instances: list[_Instance] = []
        self._threads: list[threading.Thread] = []
        self.resize(programs)

    def resize(self, programs: Sequence[port.Program]) -> None:
        """Serves through these from now on, one instance for each entry. Does not block.

        Instances that stay go on as they are; the others end after what they run.
        """
        wanted = list(programs)
        leaving: list[_Instance] = []
        with self._condition:
            for instance in self._instances:
                index = next((at for at, program in enumerate(wanted) if program is instance.program), None)
                if index is None:
                    leaving.append(instance)
                else:
                    del wanted[index]
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if not self._closing:
                self._begin([_Instance(program) for program in wanted])
            if len(leaving) < len(self._instances):
                # Else nothing would be left that serves.
                self._leave(leaving)
            programs = [instance.program for instance in self._instances]
            # Only what any thread may run, whatever its instance does meanwhile, can be run by the loop's.
            self._steady = self.spec.plain and all(each.steady and each.shareable for each in programs)

    def _leave(self, leaving: Sequence[_Instance]) -> None:
        for instance in leaving:
            instance.leaving = True
        self._instances = [instance for instance in self._instances if not instance.leaving]
        self._condition.notify_all()

    def _begin(self, fresh: Iterable[_Instance]) -> None:
        """Starts their threads; as long as one serves, those that the system refuses are done without."""
        for instance in fresh:
            self._made += 1
            name = f"{self.spec.name}_{self.spec.version}_{self._made - 1}"
            thread = threading.Thread(target=self._serve, args=(instance,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self._instances:
                    raise
                log.error("instance.not_started", instance=name, reason=str(error))  # noqa: TRY400 - the reason says all
                return
            self._instances.append(instance)
            self._threads.append(thread)

    def waiting(self) -> statistics.Waiting:
        """What has no answer yet."""
        with self._condition:
            pending = len(self._queue)
            return statistics.Waiting(pending, pending + self._running)

    def submit(
        self,
        requests: Iterable[border.InferRequest],
        loop: asyncio.AbstractEventLoop,
        arrival_ns: int,
        shared: regions.Regions,
        tracer: tracing.Tracer = tracing.NOBODY,
    ) -> list[delivery.Answered]:
        """Takes the requests in; gives back those that are refused, with the reason."""
        works: list[work.Work] = []
        refused: list[delivery.Answered] = []
        for request in requests:
            try:
                works.append(self._admission.admit(request, loop, arrival_ns, shared))
            except border.InferenceError as error:
                refused.append((request.reply, error.bare()))
            except Exception as error:  # noqa: BLE001 - whatever a request holds, it gets its answer
                refused.append((request.reply, _malformed(error, request.id)))
        if refused:
            self._counters.failed(statistics.OTHER, len(refused), 0)
        if tracer.on:
            for each in works:
                tracer.begin(self.spec, each)
        if works:
            refused += self._enqueue(works)
            self._serve_here(arrival_ns + _SPARED_NS, loop, urgent=any(each.deadline_ns is not None for each in works))
        return refused

    def stop(self) -> None:
        """Takes nothing more; what waits and runs will finish. Does not block."""
        with self._condition:
            self._closing = True
            # What waits for company need not wait any longer.
            self._config = dataclasses.replace(self._config, max_delay_ns=0)
            self._condition.notify_all()

    def abandon(self) -> None:
        """Takes nothing more and answers what waits with the stopping error. Does not block."""
        with self._condition:
            left = list(self._queue)
            self._queue.clear()
        self.stop()
        self._fail(statistics.REJECTED, left)
        delivery.post([(each, stopping()) for each in left])

    def join(self, until_s: float) -> bool:
        """Blocks until all threads have ended, at most until that monotonic time; true if they have."""
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _enqueue(self, works: list[work.Work]) -> list[delivery.Answered]:
        over: list[work.Work] = []
        with self._condition:
            if self._closing:
                return [(each.request.reply, stopping()) for each in works]
            limit = self.spec.queue.max_size
            if limit:
                room = max(0, limit - len(self._queue))
                works, over = works[:room], works[room:]
            self._queue.extend(works)
        self._fail(statistics.REJECTED, over)
        return [(each.request.reply, _full(each)) for each in over]

    def _serve_here(self, until_ns: int, loop: asyncio.AbstractEventLoop, *, urgent: bool) -> None:
        """Runs brief batches, for so long as the loop can spare; wakes a thread for the others."""
        while (found := self._next_here(until_ns, urgent=urgent)) is not None:
            program, batch = found
            self._bury(batch.dead)
            answers = self._execute(program, batch.works) if batch.works else []
            with self._condition:
                self._idle += 1
            self._deliver(batch.ticket, answers, loop)

    def _next_here(self, until_ns: int, *, urgent: bool) -> tuple[port.Program, _Batch] | None:
        """A brief batch and an idle instance's program for it, which no thread has meanwhile."""
        with self._condition:
            now_ns = time.monotonic_ns()
            if self._steady and self._idle and self._queue and now_ns < until_ns and not self._closing:
                count = batching.decide(self._queue, now_ns, self._config).take
                items = sum(each.size for each in itertools.islice(self._queue, count))
                if count and self._pace.is_brief(self._queue[0].key, items):
                    self._idle -= 1
                    return self._instances[0].program, self._taken(count, now_ns)
            self._wake(now_ns, urgent=urgent)
            return None

    def _wake(self, now_ns: int, *, urgent: bool = False) -> None:
        """Wakes an idle instance if there is a batch for it, or (`urgent`) a moment that none waits for yet."""
        if not self._idle or not self._queue:
            return
        if urgent or not self._timed or batching.decide(self._queue, now_ns, self._config).take:
            self._condition.notify()

    def _serve(self, instance: _Instance) -> None:
        while (batch := self._next(instance)) is not None:
            self._bury(batch.dead)
            self._deliver(batch.ticket, self._execute(instance.program, batch.works) if batch.works else [])
            # The answers' memory is the clients' now; do not hold it while waiting.
            del batch

    def _next(self, instance: _Instance) -> _Batch | None:
        """Waits for the next batch; None once the instance is to end."""
        with self._condition:
            while True:
                now_ns = time.monotonic_ns()
                if instance.leaving:
                    # It may have been woken for what another instance is to run.
                    self._wake(now_ns, urgent=True)
                    self._forget(instance)
                    return None
                decision = batching.decide(self._queue, now_ns, self._config)
                if decision.take:
                    batch = self._taken(decision.take, now_ns)
                    self._wake(now_ns)
                    return batch
                if self._closing and not self._queue:
                    self._forget(instance)
                    return None
                dead = self._purge(now_ns)
                if dead:
                    return _Batch([], dead, self._ticket())
                self._wait(decision.wait_until_ns, now_ns)

    def _forget(self, instance: _Instance) -> None:
        """Lets go of the program: its memory is to be free once its last thread has ended."""
        self._instances = [each for each in self._instances if each is not instance]

    def _taken(self, count: int, now_ns: int) -> _Batch:
        works: list[work.Work] = []
        dead: _Pairs = []
        for _ in range(count):
            each = self._queue.popleft()
            end = _end(each, now_ns)
            if end is None:
                works.append(each)
            else:
                dead.append((each, end))
        self._running += len(works)
        return _Batch(works, dead, self._ticket())

    def _wait(self, until_ns: int | None, now_ns: int) -> None:
        """Waits for company, at most until the first deadline in the queue."""
        moments = [each.deadline_ns for each in self._queue if each.deadline_ns is not None]
        if until_ns is not None:
            moments.append(until_ns)
        self._idle += 1
        self._timed += bool(moments)
        try:
            self._condition.wait(min((min(moments) - now_ns) / 1e9, _LONGEST_WAIT_S) if moments else None)
        finally:
            self._idle -= 1
            self._timed -= bool(moments)

    def _purge(self, now_ns: int) -> _Pairs:
        """Takes the dead out of the queue."""
        dead: _Pairs = []
        for each in self._queue:
            end = _end(each, now_ns)
            if end is not None:
                dead.append((each, end))
        if dead:
            gone = {id(each) for each, _ in dead}
            self._queue = collections.deque(each for each in self._queue if id(each) not in gone)
        return dead

    def _bury(self, dead: _Pairs) -> None:
        """Counted before they are answered: who has an answer finds it in the statistics."""
        if not dead:
            return
        for each, answer in dead:
            cancelled = isinstance(answer, border.InferenceError) and answer.kind is border.ErrorKind.CANCELLED
            self._fail(statistics.CANCELED if cancelled else statistics.REJECTED, [each])
        delivery.post(dead)

    def _execute(self, program: port.Program, works: Sequence[work.Work]) -> _Pairs:
        started_ns = time.monotonic_ns()
        try:
            found, refused = execution.readable(self.spec, works)
        except Exception as error:  # noqa: BLE001 - whatever a request holds, its batch is answered and the next one runs
            return self._failed(error, works)
        self._fail(statistics.OTHER, [each for each, _ in refused])
        return refused + self._run(program, found, started_ns) if found else refused

    def _run(self, program: port.Program, works: Sequence[work.Work], started_ns: int) -> _Pairs:
        try:
            outcome = execution.run(program, self.spec, works, started_ns)
        except Exception as error:  # noqa: BLE001 - whatever a model does, its batch is answered and the next one runs
            return self._failed(error, works)
        answered = list(zip(works, outcome.answers, strict=True))
        self._count(answered, started_ns, outcome)
        for each, answer in answered:
            if each.trace is not None:
                _note(each.trace, each, answer, started_ns, outcome.timings)
        return answered

    def _failed(self, error: Exception, works: Sequence[work.Work]) -> _Pairs:
        log.warning("execution.failed", model=self.spec.name, version=self.spec.version, error=str(error))
        self._fail(statistics.BACKEND, works)
        internal = border.InferenceError(border.ErrorKind.INTERNAL, str(error))
        return [(each, validation.with_id(internal, each.request.id)) for each in works]

    def _count(self, answered: _Pairs, started_ns: int, outcome: execution.Outcome) -> None:
        now_ns = time.monotonic_ns()
        items = sum(each.size for each, _ in answered)
        served = [each for each, answer in answered if isinstance(answer, border.InferResponse)]
        self._counters.executed(
            statistics.Executed(
                items=items,
                waits_ns=[started_ns - each.arrival_ns for each in served],
                lives_ns=[now_ns - each.arrival_ns for each in served],
                timings=outcome.timings,
            )
        )
        if self._steady:
            with self._condition:
                self._pace.note(answered[0][0].key, items, outcome.cost)
        if len(served) < len(answered):
            # It ran, but its output does not fit where it was to go.
            self._fail(
                statistics.OTHER, [each for each, answer in answered if isinstance(answer, border.InferenceError)]
            )

    def _fail(self, reason: str, works: Sequence[work.Work]) -> None:
        if works:
            now_ns = time.monotonic_ns()
            self._counters.failed(reason, len(works), sum(now_ns - each.arrival_ns for each in works))

    def _ticket(self) -> int:
        return self._sequencer.ticket() if self._sequencer else 0

    def _deliver(self, ticket: int, answers: _Pairs, here: asyncio.AbstractEventLoop | None = None) -> None:
        if self._sequencer:
            self._sequencer.deliver(ticket, answers)
        elif answers:
            self._post(answers, here)

    def _post(self, answers: _Pairs, here: asyncio.AbstractEventLoop | None = None) -> None:
        """Counts the requests as answered before they are: who has an answer does not find itself in flight."""
        with self._condition:
            self._running -= len(answers)
        delivery.post(answers, here)


class _Sequencer:
    """Lets batches leave in the order in which they were taken, whichever instance is done first."""

    def __init__(self, post: Callable[[_Pairs], None]) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._issued = 0
        self._next = 0
        self._done: dict[int, _Pairs] = {}

    def ticket(self) -> int:
        """The place of the batch just taken; asked for while the queue is locked."""
        self._issued += 1
        return self._issued - 1

    def deliver(self, ticket: int, answers: _Pairs) -> None:
        # Posted under the lock: otherwise a later batch could overtake on its way to the loop.
        with self._lock:
            self._done[ticket] = answers
            while (ready := self._done.pop(self._next, None)) is not None:
                self._next += 1
                if ready:
                    self._post(ready)


def _note(
    found: trace.Trace, each: work.Work, answer: delivery.Answer, started_ns: int, timings: statistics.Timings
) -> None:
    """What a trace tells of an execution."""
    found.computed(started_ns, timings)
    found.show("TENSOR_BACKEND_INPUT", filter(None, each.inputs))
    if isinstance(answer, border.InferResponse):
        found.show("TENSOR_BACKEND_OUTPUT", answer.outputs)


def _end(each: work.Work, now_ns: int) -> border.InferenceError | None:
    """Why this request must not run any more."""
    if each.request.cancelled:
        error = border.InferenceError(border.ErrorKind.CANCELLED, "request has been cancelled")
    elif each.deadline_ns is not None and now_ns >= each.deadline_ns:
        error = border.InferenceError(border.ErrorKind.UNAVAILABLE, "Request timeout expired")
    else:
        return None
    return validation.with_id(error, each.request.id)


def _full(each: work.Work) -> border.InferenceError:
    error = border.InferenceError(border.ErrorKind.UNAVAILABLE, "Exceeds maximum queue size")
    return validation.with_id(error, each.request.id)


def _malformed(error: Exception, request_id: str) -> border.InferenceError:
    malformed = border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, f"malformed request: {error}")
    return validation.with_id(malformed, request_id)
