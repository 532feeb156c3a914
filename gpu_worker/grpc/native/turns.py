"""Work that would hold up the event loop, in a few threads, a step at a time.

Connections take turns, so that one with much to do does not keep others waiting for longer than a step of its own. What
a piece of work holds on its way is booked. Made and used on one event loop; must never run a step of work that nobody
waits for, once it is known.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import functools
from collections.abc import Generator
from typing import Any, Generic, TypeVar

from gpu_worker.engine import border
from gpu_worker.wire import intake as wire_intake

_T = TypeVar("_T")
_THREADS = 2

Steps = Generator[int, None, _T]
"""Work in steps of a few milliseconds; yields how many bytes more it holds since the step before."""


class Work(Generic[_T]):
    """One piece of work. `done` is its result; it may be cancelled while that is waited for."""

    __slots__ = ("booked_bytes", "done", "dropped", "steps")

    def __init__(self, steps: Steps[_T], done: asyncio.Future[_T]) -> None:
        self.steps = steps
        self.done = done
        self.dropped = False
        self.booked_bytes = 0

    def drop(self) -> None:
        """Nobody wants the result: `done` is cancelled as soon as no thread is at it."""
        self.dropped = True


class Turns:
    """See the module."""

    def __init__(self, intake: wire_intake.Intake) -> None:
        self.executor: concurrent.futures.Executor = concurrent.futures.ThreadPoolExecutor(_THREADS, "grpc-codec")
        self._intake = intake
        self._loop = asyncio.get_running_loop()
        self._queues: dict[object, collections.deque[Work[Any]]] = {}
        self._free = _THREADS
        self._closed = False

    def begin(self, whose: object, steps: Steps[_T]) -> Work[_T]:
        """Does `steps` when it is the turn of `whose`, after what was begun for it before."""
        work = Work(steps, self._loop.create_future())
        self._queues.setdefault(whose, collections.deque()).append(work)
        self._go_on()
        return work

    def close(self) -> None:
        """No step begins any more; what is not done is cancelled."""
        self._closed = True
        for queue in self._queues.values():
            for work in queue:
                self._end(work)
        self._queues.clear()
        self.executor.shutdown(wait=False, cancel_futures=True)

    def _go_on(self) -> None:
        while self._free and self._queues and not self._closed:
            whose = next(iter(self._queues))
            queue = self._queues.pop(whose)
            work = queue.popleft()
            if queue:
                self._queues[whose] = queue
            if work.dropped or work.done.cancelled():
                self._end(work)
            else:
                self._free -= 1
                step = self._loop.run_in_executor(self.executor, _step, work.steps)
                step.add_done_callback(functools.partial(self._stepped, whose, work))

    def _stepped(self, whose: object, work: Work[Any], step: asyncio.Future[tuple[bool, Any]]) -> None:
        self._free += 1
        # Asked for in any case: a failure that nobody asks for would be logged as one that was overlooked.
        error = None if step.cancelled() else step.exception()
        if step.cancelled() or work.dropped or work.done.cancelled() or self._closed:
            self._end(work)
        elif error is not None:
            self._end(work, error)
        else:
            self._take(whose, work, *step.result())
        self._go_on()

    def _take(self, whose: object, work: Work[Any], ended: bool, value: Any) -> None:  # noqa: FBT001 - of _step
        if ended:
            work.done.set_result(value)
            self._end(work)
        elif self._intake.hold(value):
            work.booked_bytes += value
            self._queues.setdefault(whose, collections.deque()).appendleft(work)
        else:
            self._end(work, border.InferenceError(border.ErrorKind.UNAVAILABLE, wire_intake.FULL))

    def _end(self, work: Work[Any], error: BaseException | None = None) -> None:
        work.steps.close()
        self._intake.let_go(work.booked_bytes)
        work.booked_bytes = 0
        if not work.done.done():
            if error is None:
                work.done.cancel()
            else:
                work.done.set_exception(error)


def _step(steps: Steps[Any]) -> tuple[bool, Any]:
    """Runs in a thread. Whether the work has ended, and its result, or what it holds more."""
    try:
        return False, next(steps)
    except StopIteration as end:
        return True, end.value
