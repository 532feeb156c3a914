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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placer:
    """One pass places what can be placed. `capacity` answers what may be booked on a worker of a spec."""

    store: store_module.Store
    clock: clock_module.Clock
    ids: ids.IdSource
    capacity: Callable[[resources.WorkerSpec], int]
    metrics: metrics_module.Metrics

    async def __call__(self) -> None:
        fleet = await self.store.read(lambda reader: fleet_view.fleet(reader, self.capacity))
        now = self.clock.now()
        plan = planning.plan(fleet, now, self.ids)
        known = {each.id: each for each in fleet.leases}
        if not _says_something(plan, known, now):
            return
        await self.store.write(lambda unit: _apply(unit, plan, fleet, now))
        self.metrics.placements.inc(len(plan.placed))
        for failed in plan.failed:
            self.metrics.ends.labels(failed.reason).inc()
        log.info("placer.planned", placed=len(plan.placed), waiting=len(plan.waiting), failed=len(plan.failed))


def _says_something(plan: report.Plan, known: dict[ids.LeaseId, lease.Lease], now: dt.datetime) -> bool:
    news = any(_waiting(known[each.lease_id], each, now) is not known[each.lease_id] for each in plan.waiting)
    return bool(plan.groups or plan.assignments or plan.placed or plan.failed) or news


def _apply(unit: store_module.UnitOfWork, plan: report.Plan, fleet: snapshot.Fleet, now: dt.datetime) -> None:
    planned_from = {each.id: each for each in fleet.leases}
    for change in plan.groups:
        unit.put_group(change.group, change.expected_generation)
    for assignment in plan.assignments:
        unit.put_assignment(assignment)
    for placed in plan.placed:
        old = _unchanged(unit, planned_from[placed.lease_id])
        event = store_module.NewEvent(type="Placed", message=placed.message, actor=ACTOR, at=now)
        unit.save_lease(lifecycle.place(old, now, placed.message), event)
    for waiting in plan.waiting:
        _wait(unit, _unchanged(unit, planned_from[waiting.lease_id]), waiting, now)
    for failed in plan.failed:
        why = lease.LeaseEnd(
            state=lease.LeaseState.FAILED, reason=failed.reason, message=failed.message, actor=ACTOR, at=now
        )
        endings.end(unit, _unchanged(unit, planned_from[failed.lease_id]), why)


def _wait(unit: store_module.UnitOfWork, old: lease.Lease, waiting: report.Waiting, now: dt.datetime) -> None:
    new = _waiting(old, waiting, now)
    if new is old:
        return
    before = old.condition("Placed")
    same = before is not None and before.reason == waiting.reason
    event = store_module.NewEvent(type="Waiting", message=waiting.message, actor=ACTOR, at=now)
    unit.save_lease(new, None if same else event)


def _waiting(old: lease.Lease, waiting: report.Waiting, now: dt.datetime) -> lease.Lease:
    return lifecycle.wait(old, waiting.reason, waiting.message, now)


def _unchanged(unit: store_module.UnitOfWork, planned_from: lease.Lease) -> lease.Lease:
    stored = unit.get_lease(planned_from.id)
    if stored is None or stored.revision != planned_from.revision:
        raise errors.Conflict(f"lease {planned_from.id} has changed since it was planned for")
    return stored
