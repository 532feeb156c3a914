"""The reconcilers of a server with their loops, and what wakes them. Decides nothing of its own.

Every loop is a task of one group: one that dies takes the server with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Awaitable, Callable, Iterable

from tms_server import cluster, sections
from tms_server import settings as settings_module
from tms_server.model import errors
from tms_server.reconcilers import (
    autoscaler,
    election,
    expirer,
    fleet,
    heartbeat,
    janitor,
    loop,
    placer,
    relay,
    reports,
    resolver,
    router,
)
from tms_server.services import agents, parts
from tms_server.world import signal

_LONGEST = dt.timedelta(hours=1)
_OFTEN = loop.Timing(rest_factor=9.0)
"""Of the passes that every lease waits for twice on its way."""


class Loops:
    """The reconcilers with their loops, and what wakes them."""

    def __init__(
        self, settings: settings_module.Settings, work: parts.Parts, hub: agents.Agents, tasks: asyncio.TaskGroup
    ) -> None:
        self._work = work
        self._tasks = tasks
        self.spawned: set[asyncio.Task[None]] = set()
        self._stop_hearing: Callable[[], object] = lambda: None
        self._election: election.Election | None = None
        work.metrics.leads.set(not work.store.shared)
        if work.store.shared:
            ttl = dt.timedelta(seconds=settings.timing.lead_ttl_s)
            self._election = election.Election(work.store, work.clock, work.ids.request(), self._turn, ttl)
        self.heartbeat = heartbeat.Heartbeat(work.store, work.clock, work.live)
        self._expirer = expirer.Expirer(work.store, work.clock, work.live, work.metrics)
        self._expiry = self._leading("expirer", self._expirer)
        self._changed = [*self._of_leases(), *self._of_fleet(), self._loop("agents", hub.push, _OFTEN)]
        self._reports = self._leading("reports", self._digest(), timing=_OFTEN)
        self._routers = self._routing() if work.backend.routes else []
        self._timed = self._by_time(settings.timing)
        self._senders, self._receivers = self._relays()

    def start(self, more: Iterable[cluster.Pass] = ()) -> list[asyncio.Task[None]]:
        """Runs everything in the task group, passes of the surroundings among it."""
        beside = [self._loop(each.name, each.work, loop.Timing(interval=_LONGEST)) for each in more]
        shared = (*self._senders, *self._receivers, *self._elections())
        each = (*self._changed, self._reports, *self._routers, *self._timed, *beside, *shared)
        running = [self._tasks.create_task(one.run(), name=one.name) for one in each]
        known = self._work.live
        wakers = (
            self._on(self._work.changed, *self._changed, self._reports, *self._routers),
            self._on(known.changed, self._reports, *self._senders),
            self._on(known.moved, *self._routers),
            self._on_backend(),
        )
        for receiver in self._receivers:
            self._stop_hearing = self._work.store.subscribe_reports(receiver.wake)
        return [*running, *(self._tasks.create_task(waker) for waker in wakers)]

    async def resign(self) -> None:
        """Comes when no loop runs any more: another server may lead at once."""
        self._stop_hearing()
        if self._election is not None:
            await self._election.resign()

    def _of_leases(self) -> list[loop.Loop]:
        work = self._work
        place = placer.Placer(
            store=work.store,
            clock=work.clock,
            ids=work.ids,
            capacity=work.backend.capacity_bytes,
            metrics=work.metrics,
        )
        look_up = resolver.Resolver(store=work.store, clock=work.clock, resolver=work.resolver)
        return [self._leading("placer", place), self._expiry, self._leading("resolver", look_up)]

    def _of_fleet(self) -> list[loop.Loop]:
        work = self._work
        sweep = janitor.Janitor(store=work.store, backend=work.backend, clock=work.clock, live=work.live)
        return [
            self._leading("fleet", fleet.Fleet(self._fleet_parts(), work.changed.notify), self._look),
            self._leading("tender", work.backend.tend),
            self._leading("janitor", sweep),
        ]

    def _routing(self) -> list[loop.Loop]:
        work = self._work
        lead = router.Router(
            store=work.store,
            backend=work.backend,
            clock=work.clock,
            live=work.live,
            lost_after=work.lost_after,
            done=work.changed.notify,
        )
        # Its passes mostly wait for the backend, and those who are ready wait for it.
        return [self._leading("router", lead, timing=loop.Timing(rest_factor=0.2))]

    def _by_time(self, timing: sections.Timing) -> list[loop.Loop]:
        work = self._work
        retention = dt.timedelta(days=timing.retention_days)
        forget = janitor.Forgetter(store=work.store, clock=work.clock, retention=retention)
        sizes = [self._leading("autoscaler", self._autoscaler())] if work.backend.scales else []
        return [
            self._loop("heartbeat", self.heartbeat, loop.Timing(interval=dt.timedelta(seconds=timing.heartbeat_s))),
            self._leading("forgetter", forget, timing=loop.Timing(interval=dt.timedelta(minutes=10))),
            *sizes,
        ]

    def _leading(
        self, name: str, work: loop.Pass, otherwise: loop.Pass | None = None, timing: loop.Timing | None = None
    ) -> loop.Loop:
        """A loop whose passes do something else, or nothing, while another server leads."""
        return self._loop(name, self._gated(work, otherwise), timing)

    def _gated(self, work: loop.Pass, otherwise: loop.Pass | None = None) -> loop.Pass:
        leader = self._election
        if leader is None:
            return work

        async def gated() -> dt.datetime | None:
            if leader.leads:
                return await work()
            return await otherwise() if otherwise is not None else None

        return gated

    def _turn(self) -> None:
        """The server begins to lead, or does so no more; then others tell of the fleet."""
        work, leads = self._work, self._election is not None and self._election.leads
        work.metrics.leads.set(leads)
        if not leads:
            work.metrics.show_fleet((), (), ())
        work.changed.notify()

    async def _look(self) -> None:
        """Who does not lead looks at the backend all the same, to answer for it."""
        self._work.live.observe(await self._work.backend.observe())

    def _relays(self) -> tuple[list[loop.Loop], list[loop.Loop]]:
        work, leader = self._work, self._election
        if leader is None:
            return [], []
        send = relay.Sender(work.store, work.clock, work.live, lambda: leader.leads)
        receive = relay.Receiver(work.store, work.clock, work.live)
        seldom = loop.Timing(rest_s=0.25)
        return [self._loop("sender", send)], [self._loop("receiver", receive, seldom)]

    def _elections(self) -> list[loop.Loop]:
        return [] if self._election is None else [self._loop("election", self._election)]

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

    def _digest(self) -> loop.Pass:
        parts_ = self._work
        digest = reports.Reports(
            store=parts_.store,
            backend=parts_.backend,
            clock=parts_.clock,
            live=parts_.live,
            metrics=parts_.metrics,
            lost_after=parts_.lost_after,
        )

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
