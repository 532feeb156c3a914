"""Makes the backend run what is stored: sizes pools, gives addresses, launches what is missing, retires what is over.

Launching and retiring go on beside the passes, one at a time for each group. It never decides where a lease goes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import itertools
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping

import structlog

from tms_server import clock as clock_module
from tms_server.fleet import desired, diff, shrink
from tms_server.model import errors, group, ids, lease, resources
from tms_server.observability import metrics as metrics_module
from tms_server.ports import backend as backend_module
from tms_server.ports import store as store_module
from tms_server.reconcilers import roller
from tms_server.world import addresses, live

log = structlog.get_logger(__name__)
DRAIN_BOUND = dt.timedelta(minutes=2)
"""A worker that holds only what is over, and does not confirm it for so long, is retired; its absence confirms."""

_REASONS: Mapping[type[Exception], str] = {
    errors.FailedPrecondition: "Refused",
    errors.ResourceExhausted: "NoRoom",
    errors.Unavailable: "BackendSilent",
}

Work = Coroutine[None, None, None]
Spawn = Callable[[Work], "asyncio.Task[None]"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is stored of the fleet."""

    shrink: shrink.Stored
    leases: Mapping[ids.LeaseId, lease.Lease]
    names: tuple[lease.NameBinding, ...]
    endpoints: Mapping[str, resources.Endpoint]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the fleet reconciler works with. `spawn` runs a task that its owner cancels at the end.

    `grows`: the backend sizes dedicated groups by its own autoscaler; else they have the replicas that are stored.
    """

    store: store_module.Store
    backend: backend_module.Backend
    clock: clock_module.Clock
    ids: ids.IdSource
    live: live.Live
    metrics: metrics_module.Metrics
    spawn: Spawn
    grows: Callable[[], bool] = lambda: True


class Fleet:
    """One pass; `done` is called when a launch or a retirement has ended, so that a pass can see it."""

    def __init__(self, parts: Parts, done: Callable[[], None]) -> None:
        self._parts = parts
        self._done = done
        self._roller = roller.Roller(store=parts.store, capacity=parts.backend.capacity_bytes)
        self._busy: dict[ids.GroupId, asyncio.Task[None]] = {}

    async def __call__(self) -> dt.datetime | None:
        parts = self._parts
        now = parts.clock.now()
        stored = await parts.store.read(self._load)
        planned = shrink.resize(stored.shrink, now, parts.ids)
        if planned.add or planned.mark or planned.remove:
            await parts.store.write(lambda unit: self._apply(unit, now))
            stored = await parts.store.read(self._load)
        if await self._publish(stored):
            stored = await parts.store.read(self._load)
        parts.metrics.show_fleet(stored.leases.values(), stored.shrink.groups, stored.shrink.assignments)
        observed = await parts.backend.observe()
        if parts.live.observe(observed):
            self._done()
        specs = self._specs(stored)
        if await self._roll(stored, specs, observed, now):
            stored = await parts.store.read(self._load)
            specs = self._specs(stored)
        stuck = _stuck(stored, now)
        wanted = [each for each in stored.shrink.groups if each not in stuck]
        differing = {key for key, spec in specs.items() if parts.backend.differs(spec)}
        for action in diff.actions(wanted, [each.group_id for each in observed], differing):
            self._start(action, specs)
        return min(filter(None, (planned.next_at, self._roller.next_at())), default=None)

    def _specs(self, stored: Stored) -> Mapping[ids.GroupId, backend_module.LaunchSpec]:
        return _specs(stored, _scalings(stored) if self._parts.grows() else {})

    async def settled(self) -> None:
        """Returns once every launch and retirement that goes on now has ended."""
        await asyncio.gather(*self._busy.values())

    def _apply(self, unit: store_module.UnitOfWork, now: dt.datetime) -> None:
        stored = self._load(unit)
        planned = shrink.resize(stored.shrink, now, self._parts.ids)
        for added in planned.add:
            unit.put_group(added, None)
        for marked in planned.mark:
            unit.put_group(marked, marked.generation)
        for removed in planned.remove:
            unit.delete_group(removed.id)
            unit.delete_endpoint(desired.group_owner(removed.id))

    async def _roll(
        self,
        stored: Stored,
        specs: Mapping[ids.GroupId, backend_module.LaunchSpec],
        observed: Iterable[backend_module.Observed],
        now: dt.datetime,
    ) -> bool:
        backend = self._parts.backend
        if not backend.scales:
            return False
        shapes = roller.shapes(
            observed, lambda key: key in self._busy or (key in specs and backend.differs(specs[key]))
        )
        return await self._roller.step(stored.shrink.pools, stored.shrink.groups, shapes, now)

    async def _publish(self, stored: Stored) -> bool:
        """An address for each group, each lease that has a place and each name; answers whether any was given."""
        missing = [owner for owner in _owners(stored) if owner not in stored.endpoints]
        if not missing or not await addresses.publish(self._parts.store, self._parts.backend, missing):
            return False
        self._done()
        return True

    def _load(self, reader: store_module.Reader) -> Stored:
        pools = reader.pools()
        return Stored(
            shrink=shrink.Stored(
                pools=pools,
                groups=reader.groups(),
                assignments=reader.assignments(),
                capacities={each.spec.worker: self._parts.backend.capacity_bytes(each.spec.worker) for each in pools},
            ),
            leases={each.id: each for each in reader.unended_leases()},
            names=reader.names(),
            endpoints=reader.endpoints(),
        )

    def _start(self, action: diff.Action, specs: Mapping[ids.GroupId, backend_module.LaunchSpec]) -> None:
        group_id = action.group.id if isinstance(action, diff.Launch) else action.group_id
        if group_id in self._busy:
            return
        if isinstance(action, diff.Retire):
            work = self._retire(group_id)
        elif (spec := specs.get(group_id)) is not None:
            work = self._launch(action.group, spec)
        else:
            return
        task = self._parts.spawn(work)
        self._busy[group_id] = task
        task.add_done_callback(lambda _: self._ended(group_id))

    def _ended(self, group_id: ids.GroupId) -> None:
        del self._busy[group_id]

    async def _launch(self, wanted: group.WorkerGroup, spec: backend_module.LaunchSpec) -> None:
        try:
            await self._parts.backend.launch(spec)
        except Exception as error:  # noqa: BLE001 - the server outlives whatever one launch raises
            self._parts.live.trouble(wanted.id, _trouble(error))
            log.warning("group.launch_failed", group=wanted.id, error=repr(error))
            return
        self._parts.live.trouble(wanted.id, None)
        log.info("group.launched", group=wanted.id, pool=wanted.pool)
        self._done()

    async def _retire(self, group_id: ids.GroupId) -> None:
        try:
            await self._parts.backend.retire(group_id)
        except Exception as error:  # noqa: BLE001 - the server outlives whatever one retirement raises
            log.warning("group.retire_failed", group=group_id, error=repr(error))
            return
        log.info("group.retired", group=group_id)
        self._done()


def _trouble(error: Exception) -> backend_module.Trouble:
    reasons = ((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), ("LaunchFailed",))
    return backend_module.Trouble(next(itertools.chain(*reasons)), str(error) or type(error).__name__)


def _specs(
    stored: Stored, scalings: Mapping[ids.GroupId, backend_module.Scaling]
) -> Mapping[ids.GroupId, backend_module.LaunchSpec]:
    """How each group that has an address is launched."""
    return {
        each.id: backend_module.LaunchSpec(
            group_id=each.id,
            namespace=each.namespace,
            worker=each.spec,
            endpoint=endpoint,
            token=each.token,
            replicas=each.replicas,
            scaling=scalings.get(each.id),
        )
        for each in stored.shrink.groups
        if (endpoint := stored.endpoints.get(desired.group_owner(each.id))) is not None
    }


def _scalings(stored: Stored) -> Mapping[ids.GroupId, backend_module.Scaling]:
    """Growth of dedicated groups; a lease in a pool grows by further assignments, never by replicas."""
    dedicated = {each.id for each in stored.shrink.groups if each.pool is None}
    found = {}
    for booked in stored.shrink.assignments:
        held = stored.leases.get(booked.lease_id)
        if booked.draining or booked.group_id not in dedicated or held is None or held.spec.autoscaling is None:
            continue
        found[booked.group_id] = backend_module.Scaling(
            lease_id=held.id, autoscaling=held.spec.autoscaling, load_s=_load_s(held)
        )
    return found


def _load_s(held: lease.Lease) -> float:
    """From its place to its first answer: what another replica will take; 0 before it was known once."""
    placed = held.condition("Placed")
    if held.active_at is None or placed is None:
        return 0.0
    return max(0.0, (held.active_at - placed.changed_at).total_seconds())


def _owners(stored: Stored) -> Iterator[str]:
    for each in stored.shrink.groups:
        yield desired.group_owner(each.id)
    for assignment in stored.shrink.assignments:
        if not assignment.draining and assignment.lease_id in stored.leases:
            yield desired.lease_owner(assignment.lease_id)
    for name in stored.names:
        yield desired.name_owner(name.namespace, name.name)


def _stuck(stored: Stored, now: dt.datetime) -> tuple[group.WorkerGroup, ...]:
    """Groups with nothing but draining assignments whose leases ended long ago: their workers do not confirm."""
    booked: dict[ids.GroupId, list[group.Assignment]] = {}
    for assignment in stored.shrink.assignments:
        booked.setdefault(assignment.group_id, []).append(assignment)
    return tuple(each for each in stored.shrink.groups if _is_stuck(booked.get(each.id, ()), stored, now))


def _is_stuck(booked: Collection[group.Assignment], stored: Stored, now: dt.datetime) -> bool:
    if not booked or not all(assignment.draining for assignment in booked):
        return False
    held = (stored.leases.get(assignment.lease_id) for assignment in booked)
    ends = [owner.end.at for owner in held if owner is not None and owner.end is not None]
    return not ends or now - max(ends) >= DRAIN_BOUND
