"""The queue of one model version and the threads that serve it, one for each instance.

A thin shell: who is next is `queueing`'s to decide, what runs when `batching`'s, how it runs `execution`'s, and whether it
is worth a thread `pace`'s: a brief batch borrows an idle instance and runs on the event loop. Requests come in lists and answers leave in
lists, one hand-over for a batch. A request whose client has gone or whose time has passed never runs; it is
answered when an instance next looks at the queue. With `preserve_ordering` results leave in the order of arrival,
refusals at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
import time
from collections.abc import Hashable, Iterable, Sequence

from gpu_worker.engine import (
    batching,
    border,
    caching,
    crew,
    delivery,
    limiting,
    pace,
    performing,
    queueing,
    regions,
    running,
    spec,
    statistics,
    tracing,
    validation,
    work,
)
from gpu_worker.runtime import port

# Configurations may ask for longer than a lock can wait; whoever wakes early looks again.
_LONGEST_WAIT_S = 3600.0

# How long a turn of the event loop may run batches itself.
_SPARED_NS = 200_000

# Inputs that it may look up in the cache, at about a nanosecond for each byte.
_EARLY_BYTES = 2**17

_Pairs = running.Pairs


@dataclasses.dataclass(slots=True)
class _Batch:
    works: list[work.Work]
    dead: _Pairs
    ticket: int


class Scheduler:
    """Serves one model version from its making until `stop`. Only `join` blocks."""

    def __init__(
        self,
        model: spec.ModelSpec,
        programs: Sequence[port.Program],
        counters: statistics.Statistics,
        cache: caching.Share | None = None,
        turns: limiting.Turns | None = None,
    ) -> None:
        self.spec = model
        self._turns = turns
        self._runner = running.Runner(model, counters, self._learn, self._late, cache)
        # Where order is kept, an answer that is there at once must wait for its turn.
        self._early_bytes = _EARLY_BYTES if cache and not model.preserve_ordering else 0
        lock = threading.Lock()
        self._condition = threading.Condition(lock)
        # Where instances wait that cannot run now: nobody wakes one of them for a batch.
        self._down = threading.Condition(lock)
        self._queue = queueing.made(model)
        self._config = model.batching
        self._most = model.batching.max_batch_size if model.batching.dynamic else 1
        self._pace = pace.Pace()
        self._running = 0
        self._idle = 0
        self._timed = 0
        self._closing = False
        self._ordered = running.Ordered(self._post) if model.preserve_ordering else None
        self._steady = False
        changed = self._changed if model.performs else None
        self._crew = crew.Crew(f"{model.name}_{model.version}", self._serve, changed)
        self.settle(self.prepare(programs))

    def prepare(self, programs: Sequence[port.Program]) -> crew.Change:
        """Starts what is missing to serve through these, one instance for each entry; serves as before until `settle`.

        Raises LoadFailed where the system refuses a thread; nothing has changed then.
        """
        with self._condition:
            return self._crew.prepare(programs, begin=not self._closing)

    def drop(self, change: crew.Change) -> None:
        """Ends what was prepared, and serves on as before."""
        self._crew.drop(change)

    def settle(self, change: crew.Change) -> None:
        """Serves as was prepared from now on. Does not block.

        Instances that stay go on as they are; the others end after what they run.
        """
        with self._condition:
            self._crew.settle(change)
            self._wake_all()
            programs = [instance.program for instance in self._crew.instances]
            # Only what any thread may run, whatever its instance does meanwhile, can be run by the loop's.
            free = self.spec.plain and self._turns is None
            self._steady = free and all(each.steady and each.shareable for each in programs)

    @property
    def available(self) -> bool:
        """Whether any instance can run what comes."""
        return not self.spec.performs or self._crew.able

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
        """Takes the requests in; gives back those that are refused, with the reason, or answered from the cache."""
        works, refused = self._runner.admit(requests, loop, arrival_ns, shared, tracer)
        if works and self._early_bytes:
            works, kept = self._runner.look_up(works, self._early_bytes)
            refused += [(each.request.reply, answer) for each, answer in kept]
        if works:
            refused += self._enqueue(works)
            self._serve_here(arrival_ns + _SPARED_NS, loop, urgent=any(map(_timed, works)))
        return refused

    def stop(self) -> None:
        """Takes nothing more; what waits and runs will finish. Does not block."""
        with self._condition:
            self._closing = True
            # What waits for company need not wait any longer.
            self._config = dataclasses.replace(self._config, max_delay_ns=0)
            self._wake_all()

    def abandon(self) -> None:
        """Takes nothing more and answers what waits with the stopping error. Does not block."""
        with self._condition:
            left = self._queue.clear()
        self.stop()
        self._runner.fail(statistics.REJECTED, left)
        delivery.post([(each, running.stopping()) for each in left])

    def join(self, until_s: float) -> bool:
        """Blocks until all threads have ended, at most until that monotonic time; true if they have."""
        return self._crew.join(until_s)

    def _enqueue(self, works: list[work.Work]) -> list[delivery.Answered]:
        with self._condition:
            if self._closing:
                return [(each.request.reply, running.stopping()) for each in works]
            if not self.available:
                self._runner.fail(statistics.REJECTED, works)
                return [(each.request.reply, _down(each)) for each in works]
            over = self._queue.add(works)
        self._runner.fail(statistics.REJECTED, over)
        return [(each.request.reply, _full(each)) for each in over]

    def _serve_here(self, until_ns: int, loop: asyncio.AbstractEventLoop, *, urgent: bool) -> None:
        """Runs brief batches, for so long as the loop can spare; wakes a thread for the others."""
        while (found := self._next_here(until_ns, urgent=urgent)) is not None:
            program, batch = found
            self._runner.bury(batch.dead)
            answers = self._runner.execute(program, batch.works) if batch.works else []
            with self._condition:
                self._idle += 1
            self._deliver(batch.ticket, answers, loop)

    def _next_here(self, until_ns: int, *, urgent: bool) -> tuple[port.Program, _Batch] | None:
        """A brief batch and an idle instance's program for it, which no thread has meanwhile."""
        with self._condition:
            now_ns = time.monotonic_ns()
            if self._steady and self._idle and self._queue and now_ns < until_ns and not self._closing:
                count = self._decide(now_ns).take
                works = list(itertools.islice(self._queue, count))
                if (
                    works
                    and self._pace.is_brief(works[0].key, sum([each.size for each in works]))
                    # Classes are made an element at a time, which no run of the program tells of.
                    and not any(each.outputs and each.classifies for each in works)
                ):
                    self._idle -= 1
                    return self._crew.instances[0].program, self._taken(count, now_ns)
            self._wake(now_ns, urgent=urgent)
            return None

    def _wake(self, now_ns: int, *, urgent: bool = False) -> None:
        """Wakes an idle instance if there is a batch for it, or (`urgent`) a moment that none waits for yet."""
        if not self._idle or not self._queue:
            return
        if urgent or not self._timed or self._decide(now_ns).take:
            # Of those that wait for their turn none can help.
            self._condition.notify(1 if self._turns is None else self._idle)

    def _decide(self, now_ns: int) -> batching.Decision:
        self._queue.settle(now_ns, self._most)
        return batching.decide(self._queue, now_ns, self._config)

    def _serve(self, instance: crew.Instance) -> None:
        if self._turns is None:
            self._work(instance)
            return
        self._turns.enter(instance, instance.program, self._stir)
        try:
            self._work(instance)
        finally:
            self._turns.limiter.leave(instance)

    def _work(self, instance: crew.Instance) -> None:
        while (batch := self._next(instance)) is not None:
            self._runner.bury(batch.dead)
            answers = self._runner.execute(instance.program, batch.works) if batch.works else []
            if self._turns is not None:
                with self._condition:
                    instance.asked = len(self._queue) > 0 and instance.able
                self._turns.limiter.give(instance, ran=bool(batch.works), again=instance.asked)
            self._deliver(batch.ticket, answers)
            # The answers' memory is the clients' now; do not hold it while waiting.
            del batch, answers

    def _stir(self) -> None:
        """An instance may run now."""
        with self._condition:
            self._condition.notify_all()

    def _may_run(self, instance: crew.Instance) -> bool:
        if self._turns is None:
            return True
        instance.asked = True
        return self._turns.limiter.want(instance)

    def _next(self, instance: crew.Instance) -> _Batch | None:
        """Waits for the next batch; None once the instance is to end."""
        with self._condition:
            while True:
                now_ns = time.monotonic_ns()
                if instance.leaving:
                    # It may have been woken for what another instance is to run.
                    self._wake(now_ns, urgent=True)
                    self._crew.forget(instance)
                    return None
                if self._closing and not self._queue:
                    self._crew.forget(instance)
                    return None
                if not instance.able:
                    self._wake(now_ns, urgent=True)
                    if instance.asked:
                        return self._nothing()
                    self._down.wait()
                    continue
                decision = self._decide(now_ns)
                if decision.take and self._may_run(instance):
                    batch = self._taken(decision.take, now_ns)
                    self._wake(now_ns)
                    return batch
                dead = running.ended(self._queue.purge(now_ns))
                if dead:
                    return _Batch([], dead, self._ticket())
                if instance.asked and not decision.take:
                    return self._nothing()
                self._wait(decision.wait_until_ns, now_ns)

    def _nothing(self) -> _Batch:
        """For who has asked for a turn and does not need it: it is given back after a batch, not under the lock."""
        return _Batch([], [], self._ticket())

    def _taken(self, count: int, now_ns: int) -> _Batch:
        taken = self._queue.take(count, now_ns)
        self._running += len(taken.works)
        return _Batch(taken.works, running.ended(taken.dead), self._ticket())

    def _wait(self, until_ns: int | None, now_ns: int) -> None:
        """Waits for company, at most until the first deadline in the queue."""
        moments = list(self._queue.moments())
        if until_ns is not None:
            moments.append(until_ns)
        self._idle += 1
        self._timed += bool(moments)
        try:
            self._condition.wait(min((min(moments) - now_ns) / 1e9, _LONGEST_WAIT_S) if moments else None)
        finally:
            self._idle -= 1
            self._timed -= bool(moments)

    def _wake_all(self) -> None:
        self._condition.notify_all()
        self._down.notify_all()

    def _changed(self) -> None:
        """An instance can run again, or no more: where none can, nobody is left to wait for."""
        with self._condition:
            self._wake_all()
            left = [] if self._crew.able else self._queue.clear()
        self._runner.fail(statistics.BACKEND, left)
        delivery.post([(each, _down(each)) for each in left])

    def _late(self, each: work.Work, answer: delivery.Answer, final: bool) -> None:  # noqa: FBT001 - as `performing.Late`
        if final:
            with self._condition:
                self._running -= 1
        performing.deliver(each, answer, final)

    def _learn(self, key: Hashable, items: int, cost: pace.Cost) -> None:
        if self._steady:
            with self._condition:
                self._pace.note(key, items, cost)

    def _ticket(self) -> int:
        return self._ordered.ticket() if self._ordered else 0

    def _deliver(self, ticket: int, answers: _Pairs, here: asyncio.AbstractEventLoop | None = None) -> None:
        if self._ordered:
            self._ordered.deliver(ticket, answers)
        elif answers:
            self._post(answers, here)

    def _post(self, answers: _Pairs, here: asyncio.AbstractEventLoop | None = None) -> None:
        """Counts the requests as answered before they are: who has an answer does not find itself in flight."""
        with self._condition:
            self._running -= len(answers)
        delivery.post(answers, here)


def _down(each: work.Work) -> border.InferenceError:
    words = f"model '{each.request.model}' is not ready: the process of every instance has ended and is being restarted"
    return validation.with_id(border.InferenceError(border.ErrorKind.UNAVAILABLE, words), each.request.id)


def _timed(each: work.Work) -> bool:
    return each.deadline_ns is not None or each.delay_ns is not None


def _full(each: work.Work) -> border.InferenceError:
    error = border.InferenceError(border.ErrorKind.UNAVAILABLE, "Exceeds maximum queue size")
    return validation.with_id(error, each.request.id)
