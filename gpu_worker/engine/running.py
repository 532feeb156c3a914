"""Batches run for a scheduler: admitted requests become answers, counted and traced on the way.

Decides nothing about what runs when, and delivers nothing. Whatever a request holds and whatever a model does, each
request gets an answer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import cast

import structlog

from gpu_worker.engine import (
    admission,
    border,
    caching,
    delivery,
    execution,
    pace,
    performing,
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

Pairs = list[tuple[work.Work, delivery.Answer]]
Learn = Callable[[Hashable, int, pace.Cost], None]
_NONE: frozenset[work.Work] = frozenset()


def stopping() -> border.InferenceError:
    """What a request gets that comes too late."""
    return border.InferenceError(
        border.ErrorKind.UNAVAILABLE,
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
    )


def ended(dead: Iterable[work.Work]) -> Pairs:
    """Works that must not run any more, with the reason."""
    return [(each, _end(each)) for each in dead]


def _end(each: work.Work) -> border.InferenceError:
    """Why this request must not run any more."""
    if each.request.cancelled:
        error = border.InferenceError(border.ErrorKind.CANCELLED, "request has been cancelled")
        return validation.with_id(error, each.request.id)
    # In Triton's very words, which have no id here.
    return border.InferenceError(border.ErrorKind.UNAVAILABLE, "Request timeout expired")


class Runner:
    """Of one model version; `learn` is told the key, the items and the cost of each batch that ran.

    `late` gets the responses of models that answer requests one by one, where these come beside a batch's. `admit` belongs to the event loop, the rest to any thread.
    """

    def __init__(
        self,
        model: spec.ModelSpec,
        counters: statistics.Statistics,
        learn: Learn | None = None,
        late: performing.Late = performing.deliver,
        cache: caching.Share | None = None,
    ) -> None:
        self.spec = model
        self._admission = admission.Admission(model)
        self._counters = counters
        self._learn = learn
        self._cache = cache
        self._late = late

    def admit(
        self,
        requests: Iterable[border.InferRequest],
        loop: asyncio.AbstractEventLoop,
        arrival_ns: int,
        shared: regions.Regions,
        tracer: tracing.Tracer,
    ) -> tuple[list[work.Work], list[delivery.Answered]]:
        """The requests that fit the model, and those that do not with the reason."""
        works: list[work.Work] = []
        refused: list[delivery.Answered] = []
        for request in requests:
            try:
                works.append(self._admission.admit(request, loop, arrival_ns, shared))
            except border.InferenceError as error:
                refused.append((request.reply, error.bare()))
            except Exception as error:  # noqa: BLE001 - whatever a request holds, it gets its answer
                refused.append((request.reply, malformed(error, request.id)))
        if refused:
            self._counters.failed(statistics.OTHER, len(refused), 0)
        if tracer.on:
            for each in works:
                tracer.begin(self.spec, each)
        return works, refused

    def execute(self, program: port.Program, works: Sequence[work.Work]) -> Pairs:
        """The answers to one batch."""
        if self._cache is None:
            return self._execute(program, works)
        try:
            left, hits = self.look_up(works)
        except Exception as error:  # noqa: BLE001 - whatever a request holds, its batch is answered and the next one runs
            return self.failed(error, works)
        answered = hits + (self._execute(program, left) if left else [])
        places = {id(each): place for place, each in enumerate(works)}
        return sorted(answered, key=lambda pair: places[id(pair[0])])

    def look_up(self, works: Sequence[work.Work], most_bytes: int | None = None) -> tuple[list[work.Work], Pairs]:
        """The works that must run, and the others with the answers that were kept.

        Looks at `most_bytes` of inputs, if given; what is left is looked up when it runs. Nothing is looked up twice.
        """
        left: list[work.Work] = []
        hits: Pairs = []
        for each in works:
            size_bytes = caching.input_bytes(each)
            if each.cache_key is None and (most_bytes is None or size_bytes <= most_bytes):
                most_bytes = None if most_bytes is None else most_bytes - size_bytes
                answer = self._kept(each)
                if answer is not None:
                    hits.append((each, answer))
                    continue
            left.append(each)
        return left, hits

    def _kept(self, each: work.Work) -> border.InferResponse | None:
        """The answer from the cache, counted and traced."""
        if self._cache is None or not caching.cacheable(each):
            return None
        started_ns = time.monotonic_ns()
        answer = self._cache.find(self.spec, each)
        now_ns = time.monotonic_ns()
        kind = "MISS" if answer is None else "HIT"
        if each.trace is not None:
            each.trace.stamp(f"CACHE_{kind}_START", started_ns)
            each.trace.stamp(f"CACHE_{kind}_END", now_ns)
        if answer is None:
            self._counters.missed(1, now_ns - started_ns)
        else:
            self._counters.hit(now_ns - each.arrival_ns, started_ns - each.arrival_ns, now_ns - started_ns)
        return answer

    def _keep(self, answered: Pairs) -> None:
        """Keeps the answers to what was looked up in vain; what that takes belongs to the misses."""
        if self._cache is None:
            return
        started_ns = time.monotonic_ns()
        for each, answer in answered:
            if isinstance(answer, border.InferResponse):
                self._cache.keep(each, answer)
        self._counters.missed(0, time.monotonic_ns() - started_ns)

    def _execute(self, program: port.Program, works: Sequence[work.Work]) -> Pairs:
        if self.spec.performs:
            return self._perform(cast("port.Performer", program), works)
        started_ns = time.monotonic_ns()
        found, refused = self.readable(works)
        return refused + self.run(program, found, started_ns) if found else refused

    def readable(self, works: Sequence[work.Work]) -> tuple[Sequence[work.Work], Pairs]:
        """Those that can run, read, and answers to the others."""
        try:
            found, refused = execution.readable(self.spec, works)
        except Exception as error:  # noqa: BLE001 - whatever a request holds, its batch is answered and the next one runs
            return (), self.failed(error, works)
        self.fail(statistics.OTHER, [each for each, _ in refused])
        return found, refused

    def fail(self, reason: str, works: Sequence[work.Work]) -> None:
        """Counts requests that end without a result."""
        if works:
            now_ns = time.monotonic_ns()
            self._counters.failed(reason, len(works), sum(now_ns - each.arrival_ns for each in works))

    def bury(self, dead: Pairs) -> None:
        """Answers those that must not run any more, counted before: who has an answer finds it in the statistics."""
        if not dead:
            return
        for each, answer in dead:
            cancelled = isinstance(answer, border.InferenceError) and answer.kind is border.ErrorKind.CANCELLED
            self.fail(statistics.CANCELED if cancelled else statistics.REJECTED, [each])
        delivery.post(dead)

    def run(
        self,
        program: port.Program,
        works: Sequence[work.Work],
        started_ns: int,
        beside: execution.Beside | None = None,
    ) -> Pairs:
        """The answers to works that were read since `started_ns`; none to the fillers among them."""
        fillers = beside.fillers if beside is not None else _NONE
        try:
            outcome = execution.run(program, self.spec, works, started_ns, beside)
        except Exception as error:  # noqa: BLE001 - whatever a model does, its batch is answered and the next one runs
            return self.failed(error, [each for each in works if each not in fillers])
        answered = list(zip(works, outcome.answers, strict=True))
        if fillers:
            answered = [pair for pair in answered if pair[0] not in fillers]
        self._keep(answered)
        self._count(answered, started_ns, outcome, rows=len(works) if fillers else 0)
        for each, answer in answered:
            if each.trace is not None:
                _note(each.trace, each, answer, started_ns, outcome.timings)
        return answered

    def _perform(self, program: port.Performer, works: Sequence[work.Work]) -> Pairs:
        try:
            answered = performing.Batch(self.spec, works, self._counters, self._late).run(program)
            self._keep(answered)
        except Exception as error:  # noqa: BLE001 - whatever a request holds, its batch is answered and the next one runs
            return self.failed(error, works)
        return answered

    def failed(self, error: Exception, works: Sequence[work.Work]) -> Pairs:
        """The answers to a batch that failed for that reason."""
        log.warning("execution.failed", model=self.spec.name, version=self.spec.version, error=str(error))
        self.fail(statistics.BACKEND, works)
        internal = border.InferenceError(border.ErrorKind.INTERNAL, str(error))
        return [(each, validation.with_id(internal, each.request.id)) for each in works]

    def _count(self, answered: Pairs, started_ns: int, outcome: execution.Outcome, rows: int) -> None:
        now_ns = time.monotonic_ns()
        items = sum(each.size for each, _ in answered)
        served = [each for each, answer in answered if isinstance(answer, border.InferResponse)]
        self._counters.executed(
            statistics.Executed(
                items=items,
                waits_ns=[started_ns - each.arrival_ns for each in served],
                lives_ns=[now_ns - each.arrival_ns for each in served],
                timings=outcome.timings,
                rows=rows,
            )
        )
        if self._learn is not None:
            self._learn(answered[0][0].key, items, outcome.cost)
        if len(served) < len(answered):
            # It ran, but its output does not fit where it was to go.
            self.fail(
                statistics.OTHER, [each for each, answer in answered if isinstance(answer, border.InferenceError)]
            )


class Ordered:
    """Lets batches leave in the order in which they were taken, whichever instance is done first."""

    def __init__(self, post: Callable[[Pairs], None]) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._issued = 0
        self._next = 0
        self._done: dict[int, Pairs] = {}

    def ticket(self) -> int:
        """The place of the batch just taken; asked for while the queue is locked."""
        self._issued += 1
        return self._issued - 1

    def deliver(self, ticket: int, answers: Pairs) -> None:
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


def malformed(error: Exception, request_id: str) -> border.InferenceError:
    """What a request gets that cannot even be looked at."""
    found = border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, f"malformed request: {error}")
    return validation.with_id(found, request_id)
