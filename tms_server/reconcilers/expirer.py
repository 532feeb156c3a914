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
    """What is known in memory at the start of a pass: digested reports, since when sidecars are gone, use not stored."""

    reports: Mapping[ids.GroupId, group.GroupReport]
    gone_since: Mapping[ids.GroupId, dt.datetime]
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
        reports = {each.id: self._live.digested(each.id) for each in groups}
        gone = {each.id: self._gone_since(each) for each in groups}
        return Known(
            reports={key: value for key, value in reports.items() if value is not None},
            gone_since={key: value for key, value in gone.items() if value is not None},
            uses=dict(self._live.uses),
        )

    def _gone_since(self, of: group.WorkerGroup) -> dt.datetime | None:
        if self._live.heard(of.id) is None:
            return max(self._started_at, of.created_at)
        return self._live.gone_since(of.id)

    def _verdicts(
        self, reader: store_module.Reader, leases: Iterable[lease.Lease], known: Known, now: dt.datetime
    ) -> dict[ids.LeaseId, expiry.Verdict]:
        groups = {each.lease_id: each.group_id for each in reader.assignments() if not each.draining}
        return {
            each.id: expiry.verdict(_used(each, known), self._evidence(each, groups.get(each.id), known), now)
            for each in leases
            if each.state.living
        }

    def _evidence(self, held: lease.Lease, group_id: ids.GroupId | None, known: Known) -> expiry.Evidence:
        if group_id is None:
            return expiry.Evidence(worker_gone_since=self._started_at)
        report = known.reports.get(group_id)
        gone_since = known.gone_since.get(group_id)
        if report is None:
            return expiry.Evidence(worker_gone_since=gone_since)
        return expiry.Evidence(
            sampled_at=report.true_at,
            activity_known=report.activity_known,
            in_use=gone_since is None and activity.in_use(held, report),
            worker_gone_since=gone_since,
        )

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


def _used(held: lease.Lease, known: Known) -> lease.Lease:
    use = known.uses.get(held.id)
    if use is None or (held.last_activity_at is not None and held.last_activity_at >= use):
        return held
    return dataclasses.replace(held, last_activity_at=use)


def _next(verdicts: Mapping[ids.LeaseId, expiry.Verdict]) -> dt.datetime | None:
    waits = (each.until for each in verdicts.values() if not isinstance(each, expiry.End))
    return min((until for until in waits if until is not None), default=None)
