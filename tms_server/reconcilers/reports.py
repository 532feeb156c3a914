"""Works out what the sidecars' reports mean: for leases, for memory, for use, for what is learnt of models.

Reads the last report of each group and what is stored; decides purely; writes once, and only when something changed. A
pass in between that never happened loses nothing: the next one sees the same difference.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping

import structlog

from tms_server import clock as clock_module
from tms_server.fleet import desired
from tms_server.leases import activity, progress
from tms_server.model import group, ids, lease, resources
from tms_server.observability import metrics as metrics_module
from tms_server.placement import booking
from tms_server.ports import store as store_module
from tms_server.reconcilers import steps
from tms_server.world import endings, live

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is stored of all that a report can touch."""

    leases: Mapping[ids.LeaseId, lease.Lease]
    groups: Mapping[ids.GroupId, group.WorkerGroup]
    assignments: tuple[group.Assignment, ...]
    endpoints: Mapping[str, resources.Endpoint]
    measured: booking.Measured

    def on(self, group_id: ids.GroupId) -> list[lease.Lease]:
        """Leases still wanted on a group."""
        booked = (each for each in self.assignments if each.group_id == group_id and not each.draining)
        return [self.leases[each.lease_id] for each in booked if each.lease_id in self.leases]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The last report of a group, and the one whose use was counted last."""

    report: group.GroupReport
    previous: group.GroupReport | None


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
    clock: clock_module.Clock
    live: live.Live
    metrics: metrics_module.Metrics
    lost_after: dt.timedelta

    async def __call__(self) -> dt.datetime | None:
        now = self.clock.now()
        heard = {report.group_id: self._heard(report, now) for report in self.live.reports()}
        stored = await self.store.read(load)
        if decide(stored, heard, now):
            changes = await self.store.write(lambda unit: _apply(unit, heard, now))
            self._tell(changes, now)
        self.live.digest(each.report for each in heard.values())
        self._count_use(stored, heard)
        gone = filter(None, (self.live.gone_since(each) for each in heard))
        return min((since + self.lost_after for since in gone if since + self.lost_after > now), default=None)

    def _heard(self, report: group.GroupReport, now: dt.datetime) -> Heard:
        gone_since = self.live.gone_since(report.group_id)
        connected = gone_since is None or now - gone_since < self.lost_after
        return Heard(
            report=dataclasses.replace(report, connected=connected), previous=self.live.digested(report.group_id)
        )

    def _count_use(self, stored: Stored, heard: Mapping[ids.GroupId, Heard]) -> None:
        """Keeps newer use in memory; the heartbeat stores it."""
        for lease_id, last in uses(stored, heard):
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
        measured=booking.measured(reader.measurements()),
    )


def decide(stored: Stored, heard: Mapping[ids.GroupId, Heard], now: dt.datetime) -> Changes:
    """What the reports change."""
    booked = dict.fromkeys(each.lease_id for each in stored.assignments if each.lease_id in stored.leases)
    known_shas = steps.shas(
        (stored.leases[each] for each in booked), (model for each in heard.values() for model in each.report.models)
    )
    moves = (
        step
        for assignment in stored.assignments
        if (step := _step(stored, assignment, heard, known_shas, now)) is not None
    )
    return Changes(
        steps=tuple(moves),
        gone=tuple(each for each in stored.assignments if _gone(stored, each, heard)),
        measurements=tuple(_measurements(stored, heard, now)),
    )


def uses(stored: Stored, heard: Mapping[ids.GroupId, Heard]) -> Iterator[tuple[ids.LeaseId, dt.datetime]]:
    """Leases whose use is newer than what is stored, with the time of it."""
    for group_id, each in heard.items():
        for held in stored.on(group_id):
            last = activity.observe(held, each.previous, each.report)
            if last is not None and last != held.last_activity_at and held.state.living:
                yield held.id, last


def _step(
    stored: Stored,
    assignment: group.Assignment,
    heard: Mapping[ids.GroupId, Heard],
    known_shas: steps.Shas,
    now: dt.datetime,
) -> steps.Step | None:
    held = stored.leases.get(assignment.lease_id)
    if held is None or assignment.draining or not held.state.living:
        return None
    known = heard.get(assignment.group_id)
    endpoint = stored.endpoints.get(desired.lease_owner(held.id))
    said = progress.of(held, assignment, endpoint, None if known is None else known.report)
    return steps.step(held, said if known is not None else None, known_shas, now)


def _gone(stored: Stored, assignment: group.Assignment, heard: Mapping[ids.GroupId, Heard]) -> bool:
    ended, known = stored.leases.get(assignment.lease_id), heard.get(assignment.group_id)
    if not assignment.draining or ended is None or known is None or not known.report.connected:
        return False
    return progress.released(ended, assignment, stored.on(assignment.group_id), known.report)


def _measurements(stored: Stored, heard: Mapping[ids.GroupId, Heard], now: dt.datetime) -> Iterator[group.Measurement]:
    for group_id, each in heard.items():
        of = stored.groups.get(group_id)
        for model in each.report.models if of is not None else ():
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


def _apply(unit: store_module.UnitOfWork, heard: Mapping[ids.GroupId, Heard], now: dt.datetime) -> Changes:
    changes = decide(load(unit), heard, now)
    _save(unit, changes.steps)
    endings.confirm(unit, changes.gone, now)
    for measurement in changes.measurements:
        unit.put_measurement(measurement)
    unit.put_reports([each.report for each in heard.values()])
    return changes


def _save(unit: store_module.UnitOfWork, moves: Iterable[steps.Step]) -> None:
    for move in moves:
        if move.end is not None:
            endings.end(unit, move.changed, move.end)
        else:
            unit.save_lease(move.changed, move.event)
