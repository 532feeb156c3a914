"""Keeps the worker at what is desired: observes, plans, acts, and tells what came of it.

Decides nothing that `desired.plan` and `activity` can decide. Level-triggered: each pass asks the server what it holds,
corrects what was believed, and starts what the plan names; a crashed server is so filled again from the cache, whether
or not the control plane answers. Every wait is bounded or ends with `close`. Must never block the event loop, which
also forwards the clients' bytes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import os
import pathlib
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent import futures
from typing import Any

import structlog

from protos.tms.v1 import agent_pb2
from sidecar import (
    backoff,
    clock,
    departure,
    endpoints,
    errors,
    health,
    materialise,
    readiness,
    remember,
    report,
    runtime,
    usage,
    values,
    wedge,
    wire,
)
from sidecar import desired as desired_state
from sidecar.cache import store as cache_store
from sidecar.desired import Phase
from sidecar.fetching import fetch, progress

log = structlog.get_logger()

_PASS_S, _DOUBT_S = 1.0, 0.2
# A worker that starts refuses until it listens; to be asked often costs nothing then, and saves its clients the wait.
_STARTING_S = 0.05
_PROBE_S = 0.5
_STALLED_S = 60.0
_PARALLEL_FETCHES = 2
_RETRY_S, _RETRY_CAP_S = 1.0, 60.0
_WANTING_ACCESS = {"NoCredentials", "CredentialsExpired"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an agent works with. `incarnation` is made anew at each start of the process."""

    store: cache_store.Cache
    memory: remember.Memory
    server: runtime.Runtime
    usage: usage.Usage
    departure: departure.Departure
    addresses: endpoints.Endpoints
    repository: pathlib.Path
    worker: values.Endpoint
    incarnation: str


class Agent:
    """One worker's keeper. All methods run on the event loop that `run` runs on."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()
        self._desired = values.Desired()
        self._held: dict[str, desired_state.Held] = {}
        self._touched: set[str] = set()
        self._gone: dict[str, values.ModelKey] = {}
        self._latch = readiness.Latch()
        self._barred: desired_state.Failure | None = None
        self._heard = False
        self._fetching: dict[str, tuple[threading.Event, progress.Progress]] = {}
        self._delays: dict[values.ModelKey, backoff.Backoff] = {}
        self._health = health.Health()
        self._cache_bytes = 0
        self._pinned: tuple[values.Model, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._defect: BaseException | None = None
        self._passed_s: float | None = None
        self._fetchers = futures.ThreadPoolExecutor(_PARALLEL_FETCHES, "fetch")

    async def run(self) -> None:
        """Works until cancelled. What was desired last is restored first."""
        restored = await self._parts.memory.restore()
        await self._in_cache(self._parts.store.sweep)
        self._cache_bytes = await asyncio.to_thread(self._parts.store.size_bytes)
        if restored.version > self._desired.version:
            self._desired, self._heard = restored, True
        self._spawn(self._watch())
        while True:
            self._passed_s = asyncio.get_running_loop().time()
            self._wake.clear()
            await self._parts.memory.save()
            await self._pin()
            await self._observe()
            self._act()
            if self._defect:
                raise self._defect
            await backoff.wait(self._wake, self._pause_s())

    def _pause_s(self) -> float:
        if not self._health.ever_up and not self._barred:
            return _STARTING_S
        return _DOUBT_S if self._health.strikes else _PASS_S

    async def close(self) -> None:
        """Stops all work and closes the addresses; what is loaded stays loaded."""
        self._closed.set()
        self._parts.departure.closed.set()
        for stop, _progress in self._fetching.values():
            stop.set()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        await self._parts.addresses.close()

    async def _pin(self) -> None:
        """What leases need stays in the cache, of which other sidecars make use as well."""
        if self._pinned != self._desired.models:
            self._pinned = self._desired.models
            await self._in_cache(lambda: self._parts.store.retain(self._pinned))

    async def _in_cache(self, work: Callable[[], None]) -> None:
        """What is in the cache may be served from a disk that cannot be written to."""
        try:
            await asyncio.to_thread(work)
        except OSError as error:
            log.warning("cache.unusable", error=os.strerror(error.errno or 0))

    # What the stream asks for.

    def hello(self) -> agent_pb2.Hello:
        return agent_pb2.Hello(
            incarnation=self._parts.incarnation,
            version=importlib.metadata.version("tms"),
            epoch=self._desired.epoch,
            generation=self._desired.generation,
        )

    def accept(self, desired: agent_pb2.Desired) -> None:
        """Takes what the server wants; what is older than what was acted on is ignored."""
        wanted = wire.desired(desired)
        if wanted.version < self._desired.version:
            log.info("desired.stale", epoch=wanted.epoch, generation=wanted.generation)
            return
        newer = wanted.version > self._desired.version
        self._desired, self._heard = wanted, True
        self._retry_at_once(lambda each: newer or each.reason in _WANTING_ACCESS)
        self._gone = {name: key for name, key in self._gone.items() if not newer}
        log.info("desired.accepted", epoch=wanted.epoch, generation=wanted.generation, models=len(wanted.models))
        self._act()
        self._parts.memory.note(desired, routed=self._latch.routed)
        self.changed.set()
        self._wake.set()

    def report_interval_s(self) -> float:
        return self._desired.report_interval_s

    async def report(self) -> agent_pb2.Report:
        """What is so now. What runs is read before what has finished, so that no request falls between the two."""
        at_ms = clock.now_ms()
        forwarded = self._parts.addresses.in_flight()
        reading = await self._read(at_ms)
        ready = {name for name, each in self._held.items() if each.phase is Phase.READY}
        # Only a pass decides that the server is down, but nobody is told that it is up when it just refused.
        up = self._health.up and not reading.refused
        seen = report.Seen(
            desired=self._desired,
            held=self._held,
            gone=self._gone,
            at_ms=at_ms,
            server_ready=up or self._holds_nothing(),
            server_down=self._barred or report.SERVER_DOWN,
            server_restarts=self._health.restarts,
            activity_known=self._parts.usage.absorb(reading, ready),
            activities=self._parts.usage.activities,
            forwarded=forwarded,
            reading=reading,
            trouble=self._parts.usage.trouble(),
            fetches={name: told.look(time.monotonic()) for name, (_stop, told) in self._fetching.items()},
            endpoints=self._parts.addresses.opened() if up else (),
            unopened=self._parts.addresses.unopened(),
            worker=self._parts.worker,
            cache_bytes=self._cache_bytes,
        )
        return report.build(seen)

    def reported(self, sent: agent_pb2.Report) -> None:
        for model in sent.models:
            self._gone.pop(model.name, None)

    # What the pod's probes ask for.

    @property
    def server_restarts(self) -> int:
        return self._health.restarts

    @property
    def server_seen(self) -> bool:
        return self._health.ever_up

    def stalled(self) -> bool:
        """Whether the passes have ceased, though the event loop runs."""
        return self._passed_s is not None and asyncio.get_running_loop().time() - self._passed_s > _STALLED_S

    def trouble(self) -> wedge.Trouble | None:
        return self._parts.usage.trouble()

    async def look(self) -> usage.Reading:
        return await self._parts.usage.read(clock.now_ms())

    async def leave(self) -> None:
        await self._parts.departure.tell()

    async def readiness(self) -> readiness.Verdict:
        """Whether clients may be sent here, the worker asked just now; bounded by about a second."""
        believed = {name: each for name, each in self._held.items() if each.phase is Phase.READY}
        try:
            index = await self._parts.server.index(_PROBE_S)
        except errors.ServerGone as error:
            self._wake.set()
            reason = error.failure.reason if isinstance(error, errors.Restricted) else "WorkerUnavailable"
            return readiness.Verdict(reason, str(error))
        if trouble := self.trouble():
            return readiness.Verdict(trouble.reason, trouble.message)
        lost = {name for name, each in believed.items() if self._held.get(name) is each and name not in index.loaded}
        if lost:
            self._wake.set()
        return readiness.verdict(self._latch, self._desired, self._held, lost)

    # Observing.

    async def _observe(self) -> None:
        self._touched.clear()
        try:
            index = await self._parts.server.index()
        except errors.ServerGone as error:
            self._missed(error)
            return
        self._barred = None
        untouched = {name: each for name, each in self._held.items() if name not in self._touched}
        settled = desired_state.settle(untouched, index.loaded - self._touched, self._parts.memory.loaded)
        was_up = self._health.up
        self._parts.usage.answered()
        restarted = self._health.answered(empty=not index.loaded | index.busy, lost=bool(settled.lost))
        if restarted:
            self._retry_at_once(lambda _: True)
            self._parts.usage.restarted()
        if restarted or (settled.lost and not index.loaded):
            self._latch = readiness.restarted(self._latch)
        if not was_up:
            log.info("server.up", restarts=self._health.restarts)
            self._retry_at_once(lambda each: each.reason in {"ServerGone", "WorkerRestricted"})
        self._correct(settled, untouched)

    def _missed(self, error: errors.ServerGone) -> None:
        if self._health.missed(error):
            log.warning("server.down", error=str(error))
            self.changed.set()
        if isinstance(error, errors.Restricted):
            self._bar(error.failure)

    def _holds_nothing(self) -> bool:
        """Whether the server answers, lets nobody in, and was never offered a model: nothing of ours can be in it."""
        return self._barred is not None and not self._parts.memory.loaded

    def _bar(self, failure: desired_state.Failure) -> None:
        """The server answers and does not let this sidecar in: what would be loaded next says why it is not."""
        if self._barred is None:
            log.error("server.restricted", error=failure.message)
        self._barred = failure
        self._parts.usage.answered()
        for name, each in list(self._held.items()):
            if each.phase is Phase.FETCHED:
                self._put(name, desired_state.Held(each.key, Phase.FAILED, failure))

    def _correct(self, settled: desired_state.Settled, untouched: dict[str, desired_state.Held]) -> None:
        for name in settled.lost:
            log.warning("model.lost", model=name)
            self._parts.usage.lost(name)
            self._put(name, None)
        for name, each in settled.held.items():
            if each != untouched.get(name) and name not in self._touched:
                log.info("model.adopted", model=name, source_digest=each.key.source_digest)
                self._put(name, each)

    async def _read(self, at_ms: int) -> usage.Reading:
        if not self._health.up:
            return usage.Reading(at_ms=at_ms)
        reading = await self._parts.usage.read(at_ms)
        if reading.statistics is None:
            self._wake.set()
        return reading

    async def _watch(self) -> None:
        """Sees whether the worker gets on, also while nobody asks for reports."""
        while not await backoff.wait(self._closed, self._parts.usage.period_s):
            troubled = self.trouble()
            await self._read(clock.now_ms())
            if (trouble := self.trouble()) != troubled and (trouble is None or troubled is None):
                log.warning("worker.trouble", trouble=trouble and trouble.reason)
                self.changed.set()

    # Acting.

    def _act(self) -> None:
        """Starts all that can begin now; each action changes what is held, so that this ends.

        As long as nobody has said what is wanted, what the worker serves stays.
        """
        if self._closed.is_set() or not self._heard:
            return
        while actions := [
            action
            for action in desired_state.plan(self._desired, self._held, self._parts.memory.loaded)
            if self._health.up or not isinstance(action, desired_state.Load)
        ]:
            for action in actions:
                self._apply(action)
        if self._parts.addresses.sync(self._servings()):
            self.changed.set()
        self._latch = readiness.advance(self._latch, self._desired, self._held)

    def _apply(self, action: desired_state.Action) -> None:
        match action:
            case desired_state.Fetch(model):
                self._put(model.name, desired_state.Held(model.key, Phase.FETCHING))
                self._spawn(self._fetch(model))
            case desired_state.Load(model):
                held = dataclasses.replace(self._held[model.name], phase=Phase.LOADING)
                self._put(model.name, held)
                self._spawn(self._load(model, held))
            case desired_state.Unload(name):
                held = self._held.get(name) or desired_state.Held(self._parts.memory.loaded[name], Phase.FAILED)
                self._put(name, dataclasses.replace(held, phase=Phase.DRAINING))
                self._spawn(self._drain(name, held.key))
            case desired_state.Forget(name):
                self._put(name, None)
                if name in self._fetching:
                    self._fetching.pop(name)[0].set()

    def _servings(self) -> list[values.Serving]:
        ready = {
            model.name
            for model in self._desired.models
            if (held := self._held.get(model.name)) and held.phase is Phase.READY and held.key == model.key
        }
        return [each for each in self._desired.servings if self._health.up and ready.issuperset(each.models)]

    async def _fetch(self, model: values.Model) -> None:
        stop, told = threading.Event(), progress.Progress(model.size_bytes)
        self._fetching[model.name] = (stop, told)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._fetchers, fetch.fetch, self._parts.store, model, stop, told)
            outcome = desired_state.Held(model.key, Phase.FETCHED, learnt=found.learnt, contents=found.contents)
        except errors.Stopped:
            return
        except errors.ModelFailed as error:
            outcome = self._failed(model, error.failure)
        except Exception:
            # One odd source must not take the other models' clients down.
            log.exception("fetch.defect", model=model.name)
            outcome = self._failed(model, desired_state.Failure("Internal", "see the sidecar's log", retryable=True))
        finally:
            stop.set()
        if self._fetching.get(model.name, (None,))[0] is stop:
            del self._fetching[model.name]
            self._finish(model, outcome, Phase.FETCHING)
        self._cache_bytes = await asyncio.to_thread(self._parts.store.size_bytes)

    async def _load(self, model: values.Model, held: desired_state.Held) -> None:
        parts = self._parts
        try:
            await asyncio.to_thread(materialise.materialise, parts.store, parts.repository, model, held.contents)
            # Written before the load, so that after a crash a loaded name is known to be this.
            await self._parts.memory.record(model.name, model.key)
            before_bytes = await self._memory_bytes()
            await parts.server.load(model.name, model.config_override)
            after_bytes = await self._memory_bytes()
        except errors.ModelFailed as error:
            self._finish(model, self._failed(model, error.failure), Phase.LOADING)
            return
        self._delays.pop(model.key, None)
        self._parts.usage.loaded(model.name)
        # A server that says nothing of its models' bytes leaves both unknown.
        memory = desired_state.LoadMemory(before_bytes=before_bytes if after_bytes else 0, after_bytes=after_bytes)
        self._finish(model, dataclasses.replace(held, phase=Phase.READY, memory=memory), Phase.LOADING)

    async def _drain(self, name: str, key: values.ModelKey) -> None:
        await self._parts.departure.unload(name, self._parts.addresses)
        await asyncio.to_thread(materialise.remove, self._parts.repository, name)
        await self._parts.memory.record(name, None)
        self._parts.usage.unloaded(name)
        self._gone[name] = key
        log.info("model.unloaded", model=name)
        self._put(name, None)
        self._act()

    async def _memory_bytes(self) -> int:
        try:
            return (await self._parts.server.statistics()).memory_bytes
        except errors.Restricted as error:
            # Without statistics nobody could ever tell whether the model is used.
            raise errors.ModelFailed(error.failure.reason, error.failure.message) from error
        except errors.ServerGone:
            return 0

    def _failed(self, model: values.Model, failure: desired_state.Failure) -> desired_state.Held:
        log.warning("model.failed", model=model.name, **dataclasses.asdict(failure))
        if not failure.retryable:
            return desired_state.Held(model.key, Phase.FAILED, failure)
        delay_s = self._delays.setdefault(model.key, backoff.Backoff(_RETRY_S, _RETRY_CAP_S)).next_s()
        waiting = desired_state.Held(model.key, Phase.WAITING, failure)
        asyncio.get_running_loop().call_later(delay_s, self._retry, model.name, waiting)
        return waiting

    def _retry(self, name: str, waiting: desired_state.Held) -> None:
        if self._held.get(name) is waiting:
            self._put(name, None)
            self._act()

    def _retry_at_once(self, which: Callable[[desired_state.Failure], bool]) -> None:
        for name, each in list(self._held.items()):
            if each.failure and each.phase in {Phase.WAITING, Phase.FAILED} and which(each.failure):
                self._put(name, None)

    def _finish(self, model: values.Model, outcome: desired_state.Held, begun: Phase) -> None:
        """Notes how a step ended, unless the name means something else by now."""
        held = self._held.get(model.name)
        if held is not None and held.key == model.key and held.phase is begun:
            self._put(model.name, outcome)
            self._act()

    def _put(self, name: str, held: desired_state.Held | None) -> None:
        self._touched.add(name)
        self.changed.set()
        if held is None:
            self._held.pop(name, None)
        else:
            self._held[name] = held
            log.info("model.phase", model=name, phase=held.phase.value)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # A defect: the process that is restarted begins from what is on disk and in the server.
            log.error("agent.defect", exc_info=error)
            self._defect = error
            self._wake.set()
