"""The server's middle without its face: a real database in a temporary file, a backend in memory, a clock moved by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import TypeVar

from tests.support import server as servers
from tms_server import app as app_module
from tms_server.fleet import desired
from tms_server.model import caller, group, ids, lease
from tms_server.observability import metrics as metrics_module
from tms_server.ports import store as store_module
from tms_server.reconcilers import expirer, fleet, heartbeat, janitor, placer, reports, resolver, router
from tms_server.services import agents, create, images, leases, names, parts, pools, views, watch, workers
from tms_server.testing import backend as fake
from tms_server.testing import clock as fake_clock
from tms_server.world import live, signal

T = TypeVar("T")
CALLER = caller.Caller("tester")
LOST_AFTER = dt.timedelta(seconds=10)


class World:
    """Every use case and every pass over one store; passes run only when a test says so."""

    def __init__(self, store: store_module.Store, clock: fake_clock.FakeClock, *, routes: bool = False) -> None:
        self.store, self.clock = store, clock
        self.backend, self.shelf = fake.FakeBackend(routes=routes), servers.Shelf()
        self.metrics, self.live, self.changed = metrics_module.Metrics(), live.Live(), signal.Signal()
        self.parts = parts.Parts(
            store=store,
            backend=self.backend,
            resolver=self.shelf,
            clock=clock,
            ids=app_module.RandomIds(),
            live=self.live,
            metrics=self.metrics,
            changed=self.changed,
            images=("here/worker:1",),
        )
        self._services()
        self._passes()

    def _services(self) -> None:
        self.creator = create.Creator(parts=self.parts)
        self.leases = leases.Leases(parts=self.parts)
        self.watcher = watch.Watcher(self.parts, self.creator)
        self.names = names.Names(parts=self.parts)
        self.pools = pools.Pools(parts=self.parts)
        self.images = images.Images(parts=self.parts)
        self.workers = workers.Workers(parts=self.parts)
        self.agents = agents.Agents(self.parts, dt.timedelta(seconds=1))

    def _passes(self) -> None:
        work = self.parts
        self.place = placer.Placer(
            store=self.store,
            clock=self.clock,
            ids=work.ids,
            capacity=self.backend.capacity_bytes,
            metrics=self.metrics,
        )
        fleet_parts = fleet.Parts(
            store=self.store,
            backend=self.backend,
            clock=self.clock,
            ids=work.ids,
            live=self.live,
            metrics=self.metrics,
            spawn=asyncio.create_task,
        )
        self.fleet = fleet.Fleet(fleet_parts, self.changed.notify)
        self.expire = expirer.Expirer(self.store, self.clock, self.live, self.metrics)
        self.digest = reports.Reports(
            store=self.store,
            backend=self.backend,
            clock=self.clock,
            live=self.live,
            metrics=self.metrics,
            lost_after=LOST_AFTER,
        )
        self.lead = router.Router(
            store=self.store,
            backend=self.backend,
            clock=self.clock,
            live=self.live,
            lost_after=LOST_AFTER,
            done=self.changed.notify,
        )
        self.beat = heartbeat.Heartbeat(self.store, self.clock, self.live)
        self.sweep = janitor.Janitor(store=self.store, backend=self.backend, clock=self.clock, live=self.live)
        self.look_up = resolver.Resolver(store=self.store, clock=self.clock, resolver=self.shelf)

    def advance(self, **span: float) -> None:
        self.clock.advance(dt.timedelta(**span))

    async def create(self, *names_: str, **fields: object) -> views.LeaseView:
        """Creates a lease of models on the shelf; `fields` are those of its spec."""
        models = tuple(lease.ModelReference(name=each, uri=f"model://shelf/{each}") for each in names_ or ("one",))
        asked = create.CreateLease(namespace=ids.DEFAULT_NAMESPACE, spec=spec(models, **fields))
        return await self.creator.create(CALLER, asked)

    async def placed(self, *names_: str, **fields: object) -> views.LeaseView:
        """A lease that has a worker which the backend runs and an address."""
        made = await self.create(*names_, **fields)
        await self.place()
        await self.run_fleet()
        return await self.get(made.lease.id)

    async def active(self, *names_: str, **fields: object) -> views.LeaseView:
        """A lease whose worker said that it serves."""
        placed = await self.placed(*names_, **fields)
        assert placed.group_id is not None
        for replica in self.replicas(placed.group_id):
            await self.hear(placed.group_id, replica=replica)
        if self.backend.routes:
            await self.settle()
        return await self.get(placed.lease.id)

    def replicas(self, group_id: ids.GroupId) -> tuple[ids.ReplicaId, ...]:
        """Those that the backend runs."""
        return tuple(self.backend.world.groups[group_id].replicas)

    async def settle(self) -> None:
        """What a change of the world leads to, as far as no worker has to say anything."""
        for _ in range(3):
            await self.fleet()
            await self.fleet.settled()
            await self.lead()
            await self.digest()
            await self.agents.push()

    async def run_fleet(self) -> None:
        await self.fleet()
        await self.fleet()
        await self.fleet.settled()

    async def get(self, lease_id: str) -> views.LeaseView:
        return await self.leases.get(CALLER, ids.DEFAULT_NAMESPACE, lease_id)

    async def stored(self, work: Callable[[store_module.Reader], T]) -> T:
        return await self.store.read(work)

    async def hear(self, group_id: ids.GroupId, **fields: object) -> group.GroupReport:
        """The group's sidecar says that everything wanted is ready (or as `fields` say otherwise), and it is digested."""
        report = dataclasses.replace(await self.report(group_id), **fields)  # type: ignore[arg-type]  # a test's own fields
        self.live.hear(report)
        await self.digest()
        return report

    async def report(self, group_id: ids.GroupId) -> group.GroupReport:
        """What a healthy sidecar would say now."""
        wanted = await self.stored(lambda reader: _wanted(reader, group_id))
        return group.GroupReport(
            group_id=group_id,
            incarnation="1",
            epoch=1,
            generation=wanted.generation,
            server_ready=True,
            activity_known=True,
            received_at=self.clock.now(),
            models=tuple(_ready(each) for each in wanted.models),
            endpoints=tuple(each.endpoint for each in wanted.endpoints),
        )


def spec(models: tuple[lease.ModelReference, ...], **fields: object) -> lease.LeaseSpec:
    given: dict[str, object] = {"placement": lease.InPool(ids.DEFAULT_POOL), **fields}
    return lease.LeaseSpec(models=models, **given)  # type: ignore[arg-type]  # a test's own fields


def _wanted(reader: store_module.Reader, group_id: ids.GroupId) -> desired.Wanted:
    held = {each.id: each for each in reader.unended_leases()}
    target = reader.get_group(group_id)
    assert target is not None
    return desired.wanted(target, reader.assignments(), held, reader.names(), reader.endpoints())


def _ready(wanted: desired.WantedModel) -> group.ModelReport:
    return group.ModelReport(
        name=wanted.key.name,
        source_digest=wanted.key.source_digest,
        config_digest=wanted.key.config_digest,
        state=group.ModelState.READY,
    )
