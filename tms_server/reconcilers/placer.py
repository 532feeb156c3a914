"""Gives leases their place: reads the fleet, plans purely, writes the plan with guards.

Whatever has changed between the reading and the writing makes the whole plan void (Conflict), and the next pass plans
anew. It starts no worker.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable

import structlog

from tms_server import clock as clock_module
from tms_server.leases import lifecycle
from tms_server.model import errors, ids, lease, resources
from tms_server.observability import metrics as metrics_module
from tms_server.placement import plan as planning
from tms_server.placement import report, snapshot
from tms_server.ports import store as store_module
from tms_server.world import endings, fleet_view

log = structlog.get_logger(__name__)
ACTOR = "system"


Revisions = dict[ids.LeaseId, int]
Ground = tuple[object, ...]
"""All that a decision about a lease stands on, but the lease itself."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Placer:
    """One pass places what can be placed. `capacity` answers what may be booked on a worker of a spec.

    A lease that found no place is not planned for again before something has changed that could give it one.
    """

    store: store_module.Store
    clock: clock_module.Clock
    ids: ids.IdSource
    capacity: Callable[[resources.WorkerSpec], int]
    metrics: metrics_module.Metrics
    _ground: Ground = dataclasses.field(default=(), init=False)
    _waiting: Revisions = dataclasses.field(default_factory=dict, init=False)
    """Leases without a place on this ground, by the revision that was planned for."""

    async def __call__(self) -> None:
        fleet = self._news(await self.store.read(lambda reader: fleet_view.fleet(reader, self.capacity)))
        if fleet is None:
            return
        now = self.clock.now()
        plan = planning.plan(fleet, now, self.ids)
        known = {each.id: each for each in fleet.leases}
        if not _says_something(plan, known, now):
            self._waiting |= {each.lease_id: known[each.lease_id].revision for each in plan.waiting}
            return
        self._waiting |= await self.store.write(lambda unit: _apply(unit, plan, fleet, now))
        self.metrics.placements.inc(len(plan.placed))
        for failed in plan.failed:
            self.metrics.ends.labels(failed.reason).inc()
        log.info("placer.planned", placed=len(plan.placed), waiting=len(plan.waiting), failed=len(plan.failed))

    def _news(self, fleet: snapshot.Fleet) -> snapshot.Fleet | None:
        """The fleet without the leases that wait in vain; None when nobody else wants a place."""
        ground = (fleet.groups, fleet.assignments, fleet.pools, fleet.measurements, fleet.names, fleet.capacities)
        unended = {each.id for each in fleet.leases}
        same = ground == self._ground
        self._waiting = {key: at for key, at in self._waiting.items() if key in unended} if same else {}
        self._ground = ground
        leases = tuple(each for each in fleet.leases if self._waiting.get(each.id) != each.revision)
        placed = {each.lease_id for each in fleet.assignments if not each.draining}
        if same and all(each.id in placed or not each.state.living for each in leases):
            return None
        return dataclasses.replace(fleet, leases=leases)


def _says_something(plan: report.Plan, known: dict[ids.LeaseId, lease.Lease], now: dt.datetime) -> bool:
    news = any(_waiting(known[each.lease_id], each, now) is not known[each.lease_id] for each in plan.waiting)
    return bool(plan.groups or plan.assignments or plan.placed or plan.failed) or news


def _apply(
    unit: store_module.UnitOfWork, plan: report.Plan, fleet: snapshot.Fleet, now: dt.datetime
) -> dict[ids.LeaseId, int]:
    """Answers the revisions of the leases that go on waiting."""
    planned_from = {each.id: each for each in fleet.leases}
    for change in plan.groups:
        unit.put_group(change.group, change.expected_generation)
    for assignment in plan.assignments:
        unit.put_assignment(assignment)
    for placed in plan.placed:
        old = planned_from[placed.lease_id]
        event = store_module.NewEvent(type="Placed", message=placed.message, actor=ACTOR, at=now)
        unit.save_lease(lifecycle.place(old, now, placed.message), event)
    waited = [_wait(unit, planned_from[each.lease_id], each, now) for each in plan.waiting]
    for failed in plan.failed:
        why = lease.LeaseEnd(
            state=lease.LeaseState.FAILED, reason=failed.reason, message=failed.message, actor=ACTOR, at=now
        )
        endings.end(unit, _unchanged(unit, planned_from[failed.lease_id]), why)
    return {each.id: each.revision for each in waited}


def _wait(unit: store_module.UnitOfWork, old: lease.Lease, waiting: report.Waiting, now: dt.datetime) -> lease.Lease:
    new = _waiting(old, waiting, now)
    if new is old:
        return old
    before = old.condition("Placed")
    same = before is not None and before.reason == waiting.reason
    event = store_module.NewEvent(type="Waiting", message=waiting.message, actor=ACTOR, at=now)
    return unit.save_lease(new, None if same else event)


def _waiting(old: lease.Lease, waiting: report.Waiting, now: dt.datetime) -> lease.Lease:
    return lifecycle.wait(old, waiting.reason, waiting.message, now)


def _unchanged(unit: store_module.UnitOfWork, planned_from: lease.Lease) -> lease.Lease:
    stored = unit.get_lease(planned_from.id)
    if stored is None or stored.revision != planned_from.revision:
        raise errors.Conflict(f"lease {planned_from.id} has changed since it was planned for")
    return stored
