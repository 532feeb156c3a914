"""Works out what the sidecars' reports and the backend's troubles mean: for leases, memory, use, what is learnt of models.

Reads the last report of each worker and what is stored; decides purely; writes once, and only when something changed. A
pass in between that never happened loses nothing: the next one sees the same difference.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import structlog

from tms_server import clock as clock_module
from tms_server.fleet import desired
from tms_server.leases import activity, progress
from tms_server.model import group, ids, lease, pool, resources
from tms_server.observability import metrics as metrics_module
from tms_server.placement import booking
from tms_server.ports import backend as backend_module
from tms_server.ports import store as store_module
from tms_server.reconcilers import hearing, steps
from tms_server.world import endings, live, sight

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """What is stored of all that a report can touch."""

    leases: Mapping[ids.LeaseId, lease.Lease]
    groups: Mapping[ids.GroupId, group.WorkerGroup]
    assignments: tuple[group.Assignment, ...]
    endpoints: Mapping[str, resources.Endpoint]
    names: tuple[lease.NameBinding, ...]
    pools: Mapping[tuple[ids.Namespace, ids.PoolName], pool.Pool]
    measured: booking.Measured

    def on(self, group_id: ids.GroupId) -> Sequence[lease.Lease]:
        """Leases still wanted on a group."""
        return self._on.get(group_id, ())

    @functools.cached_property
    def _on(self) -> Mapping[ids.GroupId, Sequence[lease.Lease]]:
        found: dict[ids.GroupId, list[lease.Lease]] = {}
        for each in self.assignments:
            if not each.draining and each.lease_id in self.leases:
                found.setdefault(each.group_id, []).append(self.leases[each.lease_id])
        return found

    def wanted(self) -> Mapping[ids.LeaseId, list[group.Assignment]]:
        """Assignments that are wanted, by lease."""
        found: dict[ids.LeaseId, list[group.Assignment]] = {}
        for each in self.assignments:
            if not each.draining and each.lease_id in self.leases:
                found.setdefault(each.lease_id, []).append(each)
        return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What has to be written."""

    steps: tuple[steps.Step, ...] = ()
    gone: tuple[group.Assignment, ...] = ()
    measurements: tuple[group.Measurement, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps or self.gone or self.measurements)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """One pass digests the reports heard so far. A sidecar that is gone for `lost_after` has lost its worker."""

    store: store_module.Store
    backend: backend_module.Backend
    clock: clock_module.Clock
    live: live.Live
    metrics: metrics_module.Metrics
    lost_after: dt.timedelta

    async def __call__(self) -> dt.datetime | None:
        now = self.clock.now()
        seen = sight.take(self.live, self.backend, self.lost_after, now)
        stored = await self.store.read(load)
        if decide(stored, seen, now):
            own = {each.worker for each in self.live.own()}
            said = tuple(each for each in seen.reports() if each.worker in own)
            changes = await self.store.write(lambda unit: _apply(unit, seen, said, now))
            self._tell(changes, now)
        self.live.digest(seen.reports())
        self._count_use(stored, seen)
        gone = filter(None, (self.live.gone_since(each.worker) for each in seen.reports()))
        return min((since + self.lost_after for since in gone if since + self.lost_after > now), default=None)

    def _count_use(self, stored: Stored, seen: sight.Sight) -> None:
        """Keeps newer use in memory; the heartbeat stores it."""
        for lease_id, last in uses(stored, seen):
            known = self.live.uses.get(lease_id)
            if known is None or last > known:
                self.live.uses[lease_id] = last

    def _tell(self, changes: Changes, now: dt.datetime) -> None:
        for step in changes.steps:
            if step.end is not None:
                self.metrics.ends.labels(step.end.reason).inc()
                log.info("lease.failed", lease=step.changed.id, reason=step.end.reason, message=step.end.message)
            elif step.first_active:
                waited = now - step.changed.created_at
                self.metrics.to_active_seconds.observe(waited.total_seconds())
                log.info("lease.active", lease=step.changed.id, waited_s=waited.total_seconds())


def load(reader: store_module.Reader) -> Stored:
    """Reads what a decision needs."""
    return Stored(
        leases={each.id: each for each in reader.unended_leases()},
        groups={each.id: each for each in reader.groups()},
        assignments=reader.assignments(),
        endpoints=reader.endpoints(),
        names=reader.names(),
        pools={(each.namespace, each.name): each for each in reader.pools()},
        measured=booking.measured(reader.measurements()),
    )


def decide(stored: Stored, seen: sight.Sight, now: dt.datetime) -> Changes:
    """What the reports, and the backend's troubles, change."""
    wanted = stored.wanted()
    known_shas = steps.shas(
        (stored.leases[each] for each in _booked(stored)), (model for each in seen.reports() for model in each.models)
    )
    untold = _untold_names(stored, seen)
    moves = (
        step
        for held in stored.leases.values()
        if held.state.living
        and (
            step := steps.step(held, _said(stored, held, wanted.get(held.id, ()), seen), known_shas, now)
            or steps.published(held, untold.get(held.id, ()), now)
            or _warned(stored, held, wanted.get(held.id, ()), seen, now)
        )
    )
    return Changes(
        steps=tuple(moves),
        gone=tuple(each for each in stored.assignments if _gone(stored, each, seen)),
        measurements=tuple(_measurements(stored, seen, now)),
    )


def _booked(stored: Stored) -> Iterable[ids.LeaseId]:
    return dict.fromkeys(each.lease_id for each in stored.assignments if each.lease_id in stored.leases)


def _said(
    stored: Stored, held: lease.Lease, booked: Sequence[group.Assignment], seen: sight.Sight
) -> progress.Progress | None:
    if not booked:
        return None
    owner = desired.lease_owner(held.id)
    case = hearing.Case(held=held, booked=booked, owner=owner, endpoint=stored.endpoints.get(owner))
    return hearing.said(case, seen)


def _warned(
    stored: Stored, held: lease.Lease, booked: Sequence[group.Assignment], seen: sight.Sight, now: dt.datetime
) -> steps.Step | None:
    """Of a lease that serves: what keeps its workers from being all that are wanted. Else: what stands against them."""
    serving = held.condition("Serving")
    if serving is not None and serving.status:
        return steps.warned(held, hearing.trouble(booked, seen), now)
    if held.active_at is not None:
        return None
    worker = _worker(stored, held)
    return None if worker is None else steps.warned(held, seen.warn(worker), now)


def _worker(stored: Stored, held: lease.Lease) -> resources.WorkerSpec | None:
    placement = held.spec.placement
    if isinstance(placement, lease.Dedicated):
        return placement.worker
    home = stored.pools.get((held.namespace, placement.pool))
    return None if home is None else home.spec.worker


def _untold_names(stored: Stored, seen: sight.Sight) -> Mapping[ids.LeaseId, list[backend_module.Trouble]]:
    """Names whose address cannot be had, by the lease that they point at."""
    found: dict[ids.LeaseId, list[backend_module.Trouble]] = {}
    for each in stored.names:
        if (trouble := seen.untold.get(desired.name_owner(each.namespace, each.name))) is not None:
            found.setdefault(each.lease_id, []).append(trouble)
    return found


def uses(stored: Stored, seen: sight.Sight) -> Iterator[tuple[ids.LeaseId, dt.datetime]]:
    """Leases whose use is newer than what is stored, with the time of it."""
    for group_id, workers in seen.workers.items():
        held_here = stored.on(group_id)
        for each in workers:
            for held in held_here if each.report is not None else ():
                last = activity.observe(held, each.previous, each.report) if each.report is not None else None
                if last is not None and last != held.last_activity_at and held.state.living:
                    yield held.id, last


def _gone(stored: Stored, assignment: group.Assignment, seen: sight.Sight) -> bool:
    """Every worker that may hold something for a draining assignment has confirmed that it does not."""
    ended = stored.leases.get(assignment.lease_id)
    if not assignment.draining or ended is None:
        return False
    if assignment.group_id not in seen.observed:
        # Somebody who never spoke to this server may be there.
        return False
    workers = seen.of(assignment.group_id)
    staying = stored.on(assignment.group_id)
    return all(not each.begun or _confirmed(ended, assignment, staying, each.report) for each in workers)


def _confirmed(
    ended: lease.Lease,
    assignment: group.Assignment,
    staying: Collection[lease.Lease],
    report: group.GroupReport | None,
) -> bool:
    return report is not None and report.connected and progress.released(ended, assignment, staying, report)


def _measurements(stored: Stored, seen: sight.Sight, now: dt.datetime) -> Iterator[group.Measurement]:
    for report in seen.reports():
        of = stored.groups.get(report.group_id)
        for model in report.models if of is not None else ():
            kind = booking.worker_kind(of.spec) if of is not None else ""
            # A worker that holds nothing yet truly begins at 0; unknown is only what was not measured afterwards.
            took = model.bytes_after_load - model.bytes_before_load if model.bytes_after_load else 0
            if took > stored.measured.get((model.source_digest, model.config_digest, kind), 0):
                yield group.Measurement(
                    source_digest=model.source_digest,
                    config_digest=model.config_digest,
                    worker=kind,
                    bytes=took,
                    measured_at=now,
                )


def _apply(
    unit: store_module.UnitOfWork, seen: sight.Sight, said: Sequence[group.GroupReport], now: dt.datetime
) -> Changes:
    """`said` are the reports that are this server's to store."""
    changes = decide(load(unit), seen, now)
    _save(unit, changes.steps)
    endings.confirm(unit, changes.gone, now)
    for measurement in changes.measurements:
        unit.put_measurement(measurement)
    unit.put_reports(said)
    return changes


def _save(unit: store_module.UnitOfWork, moves: Iterable[steps.Step]) -> None:
    for move in moves:
        if move.end is not None:
            endings.end(unit, move.changed, move.end)
        else:
            unit.save_lease(move.changed, move.event)
