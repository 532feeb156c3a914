"""One instance of a Python model: a process that is there again when it has ended, until the instance is closed.

Decides when a process that ended is followed by another (with growing pauses), when one that does not return is killed,
and what is said to those whose requests were with it. Must never leave a process behind, nor lose a request.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from gpu_worker.engine import border
from gpu_worker.ipc import link
from gpu_worker.python_backend import asking, batches, process, wire
from gpu_worker.runtime import port

log = structlog.get_logger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0
_GOOD_LIFE_S = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds that a model's code may take; 0: as long as it likes. `grace_s` is what it has to end."""

    load_s: float = 0.0
    execute_s: float = 0.0
    grace_s: float = 10.0


class Keeper:
    """Keeps the process of an instance. `perform` and `begin_end` are called from any thread, the rest on the loop."""

    def __init__(
        self,
        name: str,
        told: Mapping[str, Any],
        bounds: Bounds,
        submit: asking.Submit,
        gone: Callable[[Keeper], None],
    ) -> None:
        self.name = name
        self._gone = gone
        self.ready = False
        self.changed: Callable[[], None] = _nothing
        self.ended = threading.Event()
        self._told = told
        self._bounds = bounds
        self._submit = submit
        self._loop = asyncio.get_running_loop()
        self._process: process.Process | None = None
        self._asking: asking.Asking | None = None
        self._batches = batches.Batches(name)
        self._reviving: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._pause_s = _FIRST_PAUSE_S
        self._born_s = 0.0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    async def start(self) -> None:
        """Raises LoadFailed with what the model's code said."""
        found = process.Process(self.name, self._heard, self._lost)
        self._process = found
        self._asking = asking.Asking(found, self._submit)
        self._born_s = self._loop.time()
        try:
            await found.start()
        except OSError as error:
            self._process = None
            raise port.LoadFailed(f"the process of model instance '{self.name}' cannot be started: {error}") from None
        told = await found.set_up(self._told, self._bounds.load_s)
        if "error" in told:
            await found.end(self._bounds.grace_s)
            raise port.LoadFailed(str(told["error"]))
        self._set_ready(ready=True)

    def perform(self, queries: Sequence[port.Query], done: batches.Done) -> None:
        batch = self._batches.begin(queries, done)
        found = self._process
        reason = f"{self._failed()}Stub process '{self.name}' is not healthy: it is being restarted"
        try:
            message = batches.message(batch, self._cancelled)
            if self._bounds.execute_s:
                self._loop.call_soon_threadsafe(self._watch, batch.number)
            if found is not None and self.ready and found.send(message):
                return
        except (TypeError, ValueError) as error:
            reason = f"{self._failed()}the requests cannot be sent to its process: {error}"
        self._loop.call_soon_threadsafe(self._refuse, batch, reason)

    def begin_end(self) -> None:
        """Lets it finish what it has; `ended` is set once nothing is left of it."""
        try:
            self._loop.call_soon_threadsafe(self._end_soon)
        except RuntimeError:
            self.ended.set()

    async def abandon(self, grace_s: float) -> None:
        """Ends it whatever it is at, within so many seconds. Returns once nothing is left of it."""
        self._bounds = dataclasses.replace(self._bounds, grace_s=grace_s)
        self._end_soon()
        assert self._closing is not None
        done, _ = await asyncio.wait([self._closing], timeout=grace_s)
        if not done and self._process is not None:
            self._process.kill("the worker ends")
            await asyncio.wait([self._closing])

    def _end_soon(self) -> None:
        if self._closing is None:
            self._closing = self._loop.create_task(self._end())

    async def _end(self) -> None:
        try:
            while self.ready and not self._batches.idle:
                self._settled.clear()
                await self._settled.wait()
            if self._reviving is not None:
                self._reviving.cancel()
                await asyncio.wait([self._reviving])
            if self._process is not None:
                await self._process.end(self._bounds.grace_s)
        finally:
            self._process = None
            self.changed = _nothing
            self._gone(self)
            self.ended.set()

    def _heard(self, message: link.Message) -> None:
        if message.kind == wire.Kind.EXECUTED:
            self._batches.executed(message)
            self._settled.set()
        elif message.kind == wire.Kind.RESPOND:
            self._batches.responded(message)
            self._settled.set()
        elif message.kind == wire.Kind.ASK and self._asking is not None:
            self._asking.ask(message)
        elif message.kind == wire.Kind.UNASK and self._asking is not None:
            self._asking.give_up(message.number)

    def _lost(self, words: str) -> None:
        """The process has ended, by itself or not."""
        if self._asking is not None:
            self._asking.close()
        was_ready, self._process = self.ready, None
        self._set_ready(ready=False)
        reason = f"{self._failed()}Stub process '{self.name}' is not healthy: it has ended ({words})"
        self._batches.lost(port.Refused(reason, border.ErrorKind.INTERNAL.value))
        self._settled.set()
        if was_ready and self._closing is None:
            log.error("python.ended", instance=self.name, reason=words)
            if self._loop.time() - self._born_s > _GOOD_LIFE_S:
                self._pause_s = _FIRST_PAUSE_S
            self._reviving = self._loop.create_task(self._revive())

    async def _revive(self) -> None:
        while self._closing is None:
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
            await _paused(pause_s)
            try:
                await self.start()
            except port.LoadFailed as error:
                log.error("python.restart_failed", instance=self.name, reason=str(error))  # noqa: TRY400 - that says all
            else:
                log.info("python.restarted", instance=self.name)
                return

    def _set_ready(self, *, ready: bool) -> None:
        if self.ready != ready:
            self.ready = ready
            self.changed()

    def _refuse(self, batch: batches.Batch, reason: str) -> None:
        if self._batches.forget(batch):
            batch.done(port.Performed(failure=port.Refused(reason, border.ErrorKind.UNAVAILABLE.value)))
        self._settled.set()

    def _cancelled(self, number: int) -> None:
        if self._process is not None:
            self._process.post(link.Message(wire.Kind.CANCEL, number))

    def _watch(self, number: int) -> None:
        self._loop.call_later(self._bounds.execute_s, self._overdue, self._process, number)

    def _overdue(self, found: process.Process | None, number: int) -> None:
        if found is not None and found is self._process and self._batches.is_running(number):
            found.kill(f"execute did not return within {self._bounds.execute_s:g} seconds (execute_timeout_s)")

    def _failed(self) -> str:
        return f"Failed to process the request(s) for model '{self.name}', message: "


class Program:
    """The port's view of an instance; the process ends with it."""

    shareable = False
    steady = False

    def __init__(self, keeper: Keeper, inputs: Sequence[port.TensorInfo], outputs: Sequence[port.TensorInfo]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._keeper = keeper
        weakref.finalize(self, keeper.begin_end).atexit = False

    @property
    def ready(self) -> bool:
        return self._keeper.ready

    def watch(self, changed: Callable[[], None]) -> None:
        self._keeper.changed = changed

    def perform(self, queries: Sequence[port.Query], done: batches.Done) -> None:
        self._keeper.perform(queries, done)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """Raises RunFailed: requests of such a model are performed."""
        raise port.RunFailed(
            f"model instance '{self._keeper.name}' takes {len(feeds)} arrays for {outputs} as requests"
        )

    def close(self) -> None:
        self._keeper.begin_end()
        try:
            here = asyncio.get_running_loop() is self._keeper.loop
        except RuntimeError:
            here = False
        if not here:
            self._keeper.ended.wait()


async def _paused(pause_s: float) -> None:
    try:
        async with asyncio.timeout(pause_s):
            await asyncio.get_running_loop().create_future()
    except TimeoutError:
        return


def _nothing() -> None:
    """Nobody watches."""
