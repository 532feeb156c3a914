"""The reconcilers of a server with their loops, and what wakes them. Decides nothing of its own.

Every loop is a task of one group: one that dies takes the server with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Awaitable, Callable, Iterable

from tms_server import cluster
from tms_server import settings as settings_module
from tms_server.model import errors
from tms_server.reconcilers import (
    autoscaler,
    expirer,
    fleet,
    heartbeat,
    janitor,
    loop,
    placer,
    reports,
    resolver,
    router,
)
from tms_server.services import agents, parts
from tms_server.world import signal

_LONGEST = dt.timedelta(hours=1)


class Loops:
    """The reconcilers with their loops, and what wakes them."""

    def __init__(
        self, settings: settings_module.Settings, work: parts.Parts, hub: agents.Agents, tasks: asyncio.TaskGroup
    ) -> None:
        self._work = work
        self._tasks = tasks
        self.spawned: set[asyncio.Task[None]] = set()
        timing = settings.timing
        self.heartbeat = heartbeat.Heartbeat(work.store, work.clock, work.live)
        self._expirer = expirer.Expirer(work.store, work.clock, work.live, work.metrics)
        digest = reports.Reports(
            store=work.store,
            backend=work.backend,
            clock=work.clock,
            live=work.live,
            metrics=work.metrics,
            lost_after=work.lost_after,
        )
        place = placer.Placer(
            store=work.store,
            clock=work.clock,
            ids=work.ids,
            capacity=work.backend.capacity_bytes,
            metrics=work.metrics,
        )
        look_up = resolver.Resolver(store=work.store, clock=work.clock, resolver=work.resolver)
        sweep = janitor.Janitor(store=work.store, backend=work.backend, clock=work.clock, live=work.live)
        forget = janitor.Forgetter(
            store=work.store, clock=work.clock, retention=dt.timedelta(days=timing.retention_days)
        )
        self._expiry = self._loop("expirer", self._expirer)
        self._changed = [
            self._loop("placer", place),
            self._loop("fleet", fleet.Fleet(self._fleet_parts(), work.changed.notify)),
            self._expiry,
            self._loop("resolver", look_up),
            self._loop("janitor", sweep),
            self._loop("agents", hub.push),
        ]
        self._reports = self._loop("reports", self._digest(digest))
        self._routers = []
        if work.backend.routes:
            lead = router.Router(
                store=work.store,
                backend=work.backend,
                clock=work.clock,
                live=work.live,
                lost_after=work.lost_after,
                done=work.changed.notify,
            )
            self._routers.append(self._loop("router", lead))
        sizes = [self._loop("autoscaler", self._autoscaler())] if work.backend.scales else []
        beat = loop.Timing(interval=dt.timedelta(seconds=timing.heartbeat_s))
        self._timed = [
            self._loop("heartbeat", self.heartbeat, beat),
            self._loop("forgetter", forget, loop.Timing(interval=dt.timedelta(minutes=10))),
            *sizes,
        ]

    def start(self, more: Iterable[cluster.Pass] = ()) -> list[asyncio.Task[None]]:
        """Runs everything in the task group, passes of the surroundings among it."""
        beside = [self._loop(each.name, each.work, loop.Timing(interval=_LONGEST)) for each in more]
        each = (*self._changed, self._reports, *self._routers, *self._timed, *beside)
        running = [self._tasks.create_task(one.run(), name=one.name) for one in each]
        known = self._work.live
        wakers = (
            self._on(self._work.changed, *self._changed, self._reports, *self._routers),
            self._on(known.changed, self._reports),
            self._on(known.moved, *self._routers),
            self._on_backend(),
        )
        return [*running, *(self._tasks.create_task(waker) for waker in wakers)]

    def _loop(
        self, name: str, work: Callable[[], Awaitable[dt.datetime | None]], timing: loop.Timing | None = None
    ) -> loop.Loop:
        return loop.Loop(name, work, self._work.clock, self._work.metrics, timing)

    def _fleet_parts(self) -> fleet.Parts:
        return fleet.Parts(
            store=self._work.store,
            backend=self._work.backend,
            clock=self._work.clock,
            ids=self._work.ids,
            live=self._work.live,
            metrics=self._work.metrics,
            spawn=self._spawn,
            grows=self._work.autoscaled,
        )

    def _autoscaler(self) -> autoscaler.Autoscaler:
        work = self._work
        return autoscaler.Autoscaler(
            store=work.store,
            backend=work.backend,
            clock=work.clock,
            live=work.live,
            usage=work.usage,
            sizes_replicas=lambda: not work.autoscaled(),
        )

    def _spawn(self, work: fleet.Work) -> asyncio.Task[None]:
        task = self._tasks.create_task(work)
        self.spawned.add(task)
        task.add_done_callback(self.spawned.discard)
        return task

    def _digest(self, digest: reports.Reports) -> loop.Pass:
        async def work() -> dt.datetime | None:
            due = await digest()
            if self._expirer.owed:
                # The proof that a lease waits for may just have come.
                self._expiry.wake()
            return due

        return work

    async def _on(self, changed: signal.Signal, *woken: loop.Loop) -> None:
        with contextlib.suppress(errors.Unavailable):
            while True:
                count = changed.count
                for each in woken:
                    each.wake()
                await changed.after(count)

    async def _on_backend(self) -> None:
        async for _ in self._work.backend.watch():
            self._work.changed.notify()
