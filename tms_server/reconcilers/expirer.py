"""Ends leases by time, never early and never without proof.

Idleness is proven by a report whose use has been counted; a store that was silent ends nothing. It sleeps until the
earliest deadline instead of polling, and ends at most `MOST_ENDS` leases in a pass.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping

import structlog

from tms_server import clock as clock_module
from tms_server.leases import activity, expiry
from tms_server.model import group, ids, lease
from tms_server.observability import metrics as metrics_module
from tms_server.ports import store as store_module
from tms_server.world import endings, live

log = structlog.get_logger(__name__)
MOST_ENDS = 100
STORE_RECHECK = dt.timedelta(seconds=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known in memory at the start of a pass: digested reports, since when sidecars are gone, use not stored.

    `workers` are those of each group that may exist; a group without any still owes its bounded wait.
    """

    workers: Mapping[ids.GroupId, tuple[ids.WorkerId, ...]]
    reports: Mapping[ids.WorkerId, group.GroupReport]
    gone_since: Mapping[ids.WorkerId, dt.datetime]
    uses: Mapping[ids.LeaseId, dt.datetime]


class Expirer:
    """One pass ends what is due. `owed` says that a lease waits for the proof that the next reports may bring."""

    def __init__(
        self,
        store: store_module.Store,
        clock: clock_module.Clock,
        heard: live.Live,
        metrics: metrics_module.Metrics,
    ) -> None:
        self._store = store
        self._clock = clock
        self._live = heard
        self._metrics = metrics
        self._started_at = clock.now()
        self.owed = False

    async def __call__(self) -> dt.datetime | None:
        now = self._clock.now()
        if self._live.store_silent_since is not None:
            return now + STORE_RECHECK
        known = await self._known()
        verdicts = await self._store.read(lambda reader: self._verdicts(reader, reader.unended_leases(), known, now))
        due = [lease_id for lease_id, verdict in verdicts.items() if isinstance(verdict, expiry.End)]
        if due:
            await self._end(due[:MOST_ENDS], known, now)
        self.owed = any(isinstance(verdict, expiry.WaitForProof) for verdict in verdicts.values())
        return now if len(due) > MOST_ENDS else _next(verdicts)

    async def _known(self) -> Known:
        groups = await self._store.read(lambda reader: reader.groups())
        workers = {each.id: self._live.workers(each.id) or (ids.WorkerId(each.id),) for each in groups}
        reports = {worker: self._live.digested(worker) for found in workers.values() for worker in found}
        gone = {worker: self._gone_since(each, worker) for each in groups for worker in workers[each.id]}
        return Known(
            workers=workers,
            reports={key: value for key, value in reports.items() if value is not None},
            gone_since={key: value for key, value in gone.items() if value is not None},
            uses=dict(self._live.uses),
        )

    def _gone_since(self, of: group.WorkerGroup, worker: ids.WorkerId) -> dt.datetime | None:
        if self._live.heard(worker) is None:
            return max(self._started_at, of.created_at)
        return self._live.gone_since(worker)

    def _verdicts(
        self, reader: store_module.Reader, leases: Iterable[lease.Lease], known: Known, now: dt.datetime
    ) -> dict[ids.LeaseId, expiry.Verdict]:
        groups: dict[ids.LeaseId, list[ids.GroupId]] = {}
        for booked in reader.assignments():
            if not booked.draining:
                groups.setdefault(booked.lease_id, []).append(booked.group_id)
        return {
            each.id: expiry.verdict(_used(each, known), self._evidence(each, groups.get(each.id, []), known), now)
            for each in leases
            if each.state.living
        }

    def _evidence(self, held: lease.Lease, groups: Iterable[ids.GroupId], known: Known) -> tuple[expiry.Evidence, ...]:
        workers = [worker for group_id in groups for worker in known.workers.get(group_id, ())]
        if not workers:
            return (expiry.Evidence(worker_gone_since=self._started_at),)
        return tuple(_of_worker(held, worker, known) for worker in workers)

    async def _end(self, due: list[ids.LeaseId], known: Known, now: dt.datetime) -> None:
        def end_still_due(unit: store_module.UnitOfWork) -> list[lease.LeaseEnd]:
            found = {held.id: held for key in due if (held := unit.get_lease(key)) is not None}
            verdicts = self._verdicts(unit, found.values(), known, now)
            ends = {key: verdict.end for key, verdict in verdicts.items() if isinstance(verdict, expiry.End)}
            endings.end_all(unit, [(found[key], why) for key, why in ends.items()])
            return list(ends.values())

        ended = await self._store.write(end_still_due)
        for reason, count in collections.Counter(each.reason for each in ended).items():
            self._metrics.ends.labels(reason).inc(count)
            log.info("expirer.ended", reason=reason, leases=count)


def _of_worker(held: lease.Lease, worker: ids.WorkerId, known: Known) -> expiry.Evidence:
    report, gone_since = known.reports.get(worker), known.gone_since.get(worker)
    if report is None:
        return expiry.Evidence(worker_gone_since=gone_since)
    return expiry.Evidence(
        sampled_at=report.true_at,
        activity_known=report.activity_known,
        in_use=gone_since is None and activity.in_use(held, report),
        worker_gone_since=gone_since,
    )


def _used(held: lease.Lease, known: Known) -> lease.Lease:
    use = known.uses.get(held.id)
    if use is None or (held.last_activity_at is not None and held.last_activity_at >= use):
        return held
    return dataclasses.replace(held, last_activity_at=use)


def _next(verdicts: Mapping[ids.LeaseId, expiry.Verdict]) -> dt.datetime | None:
    waits = (each.until for each in verdicts.values() if not isinstance(each, expiry.End))
    return min((until for until in waits if until is not None), default=None)
