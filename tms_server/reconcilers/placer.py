"""Gives leases their place: reads the fleet, plans purely, writes the plan with guards.

Whatever has changed between the reading and the writing makes the whole plan void (Conflict), and the next pass plans
anew. It starts no worker.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator, Mapping

import structlog

from tms_server import clock as clock_module
from tms_server.leases import lifecycle
from tms_server.model import errors, ids, lease, resources
from tms_server.observability import metrics as metrics_module
from tms_server.placement import copies, report, snapshot
from tms_server.placement import plan as planning
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
    _short: Revisions = dataclasses.field(default_factory=dict, init=False)
    """The same of leases that have a place, and fewer copies than they should."""

    async def __call__(self) -> None:
        fleet = self._news(await self.store.read(lambda reader: fleet_view.fleet(reader, self.capacity)))
        if fleet is None:
            return
        now = self.clock.now()
        plan = planning.plan(fleet, now, self.ids)
        known = {each.id: each for each in fleet.leases}
        if not _says_something(plan, known, now):
            self._waiting |= {each.lease_id: known[each.lease_id].revision for each in plan.waiting}
            self._short |= {each.lease_id: known[each.lease_id].revision for each in plan.short}
            return
        revisions = await self.store.write(lambda unit: _apply(unit, plan, fleet, now))
        self._waiting |= {each.lease_id: revisions[each.lease_id] for each in plan.waiting}
        self._short |= {each.lease_id: revisions[each.lease_id] for each in plan.short}
        self.metrics.placements.inc(len(plan.placed) + len(plan.grown))
        for failed in plan.failed:
            self.metrics.ends.labels(failed.reason).inc()
        _tell(plan)

    def _news(self, fleet: snapshot.Fleet) -> snapshot.Fleet | None:
        """The fleet without the leases that wait in vain; None when nobody else wants a place."""
        ground = (fleet.groups, fleet.assignments, fleet.pools, fleet.measurements, fleet.names, fleet.capacities)
        unended = {each.id for each in fleet.leases}
        same = ground == self._ground
        self._waiting = {key: at for key, at in self._waiting.items() if key in unended} if same else {}
        self._short = {key: at for key, at in self._short.items() if key in unended} if same else {}
        self._ground = ground
        leases = tuple(each for each in fleet.leases if self._waiting.get(each.id) != each.revision)
        here = {each.id for each in fleet.groups}
        booked = (each for each in fleet.assignments if not each.draining and each.group_id in here)
        have = collections.Counter(each.lease_id for each in booked)
        if same and all(self._settled(each, have[each.id]) for each in leases):
            return None
        return dataclasses.replace(fleet, leases=leases)

    def _settled(self, each: lease.Lease, have: int) -> bool:
        known_short = have > 0 and self._short.get(each.id) == each.revision
        return not each.state.living or have == copies.wanted(each) or known_short


def _says_something(plan: report.Plan, known: dict[ids.LeaseId, lease.Lease], now: dt.datetime) -> bool:
    news = any(_waiting(known[each.lease_id], each, now) is not known[each.lease_id] for each in plan.waiting)
    lacks = any(_lacking(known[each.lease_id], each, now) is not known[each.lease_id] for each in plan.short)
    return bool(plan.groups or plan.assignments or plan.placed or plan.failed) or news or lacks


def _tell(plan: report.Plan) -> None:
    counts = {name: len(getattr(plan, name)) for name in ("placed", "waiting", "failed", "grown", "short", "drained")}
    log.info("placer.planned", **counts)


def _apply(unit: store_module.UnitOfWork, plan: report.Plan, fleet: snapshot.Fleet, now: dt.datetime) -> Revisions:
    """Answers the revisions of the leases that were written, or looked at in vain."""
    planned_from = {each.id: each for each in fleet.leases}
    for change in plan.groups:
        unit.put_group(change.group, change.expected_generation)
    for assignment in (*plan.assignments, *plan.drained):
        unit.put_assignment(assignment)
    written = dict(planned_from)
    for placed in plan.placed:
        event = store_module.NewEvent(type="Placed", message=placed.message, actor=ACTOR, at=now)
        moved = lifecycle.place(written[placed.lease_id], now, placed.message)
        written[placed.lease_id] = unit.save_lease(moved, event)
    for each in plan.waiting:
        written[each.lease_id] = _wait(unit, written[each.lease_id], each, now)
    for resized, told in _resized(plan, written, now):
        written[resized.id] = unit.save_lease(resized, told)
    for failed in plan.failed:
        why = lease.LeaseEnd(
            state=lease.LeaseState.FAILED, reason=failed.reason, message=failed.message, actor=ACTOR, at=now
        )
        endings.end(unit, _unchanged(unit, planned_from[failed.lease_id]), why)
    return {key: each.revision for key, each in written.items()}


def _resized(
    plan: report.Plan, written: Mapping[ids.LeaseId, lease.Lease], now: dt.datetime
) -> Iterator[tuple[lease.Lease, store_module.NewEvent | None]]:
    """Leases that got or lost copies, or lack some, each once, with what is told of it."""
    said: dict[ids.LeaseId, list[str]] = {}
    for grown in plan.grown:
        said.setdefault(grown.lease_id, []).append(grown.message)
    for drained in plan.drained:
        said.setdefault(drained.lease_id, []).append(f"leaves worker {drained.group_id}")
    short = {each.lease_id: each for each in plan.short}
    for lease_id in dict.fromkeys((*said, *short)):
        old, lacks = written[lease_id], short.get(lease_id)
        new = _enough(old, now) if lacks is None else _lacking(old, lacks, now)
        if lacks is not None and _is_news(old, lacks):
            said.setdefault(lease_id, []).append(lacks.message)
        message = "; ".join(said.get(lease_id, ()))
        told = store_module.NewEvent(type="Resized", message=message, actor=ACTOR, at=now) if message else None
        if new is not old or told is not None:
            yield new, told


def _is_news(old: lease.Lease, lacks: report.Waiting) -> bool:
    before = old.condition("Sized")
    return before is None or before.reason != lacks.reason


def _lacking(old: lease.Lease, short: report.Waiting, now: dt.datetime) -> lease.Lease:
    return lifecycle.resized(old, short.reason, short.message, now, status=False)


def _enough(old: lease.Lease, now: dt.datetime) -> lease.Lease:
    message = f"{copies.wanted(old)} worker(s) were chosen for it"
    return lifecycle.resized(old, "Resized", message, now, status=True)


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
