"""A whole fleet in memory: the pure core drives it, a virtual clock moves it, simulated workers report to it.

It applies decisions as the server does, without a store, a backend or a network.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from tests.simulation import workers
from tests.unit.core import builders as b
from tms_server.fleet import addresses, desired, shrink
from tms_server.leases import activity, expiry, lifecycle, progress
from tms_server.model import group, ids, lease, pool, resources
from tms_server.placement import explain, plan, report, snapshot

HOME = ids.InstallationId("simulation")
AssignmentKey = tuple[ids.LeaseId, ids.GroupId]


class World:
    """Everything there is. Leases stay after their end, so that nobody is lost unseen."""

    def __init__(self) -> None:
        self.now = b.START
        self.ids = b.Ids()
        self.leases: dict[ids.LeaseId, lease.Lease] = {}
        self.pools: dict[ids.PoolName, pool.Pool] = {}
        self.groups: dict[ids.GroupId, group.WorkerGroup] = {}
        self.assignments: dict[AssignmentKey, group.Assignment] = {}
        self.reports: dict[ids.GroupId, group.GroupReport] = {}
        self.gone_since: dict[ids.GroupId, dt.datetime] = {}
        self.workers: dict[ids.GroupId, workers.Worker] = {}
        self.endpoints: dict[str, resources.Endpoint] = {}

    def create(self, asked: b.L) -> lease.Lease:
        made = dataclasses.replace(asked, created=self.now).pending()
        owner = desired.lease_owner(made.id)
        self.endpoints[owner] = addresses.host_endpoint(HOME, self.endpoints.values())
        self.leases[made.id] = made
        return made

    def fleet(self) -> snapshot.Fleet:
        living = tuple(each for each in self.leases.values() if not each.state.ended)
        pools = tuple(self.pools.values())
        specs = snapshot.worker_specs(living, pools)
        return snapshot.Fleet(
            leases=living,
            pools=pools,
            groups=tuple(self.groups.values()),
            assignments=tuple(self.assignments.values()),
            capacities={spec: spec.resources.memory_bytes for spec in specs},
        )

    def place(self) -> report.Plan:
        """One pass of the placer, then of what launches workers."""
        made = plan.plan(self.fleet(), self.now, self.ids)
        for change in made.groups:
            self.groups[change.group.id] = change.group
        for booked in made.assignments:
            self.assignments[booked.lease_id, booked.group_id] = booked
        for placed in made.placed:
            self._move(lifecycle.place(self.leases[placed.lease_id], self.now, placed.message))
        for waiting in made.waiting:
            self._move(lifecycle.wait(self.leases[waiting.lease_id], waiting.reason, waiting.message, self.now))
        for failed in made.failed:
            self.end(failed.lease_id, lease.LeaseState.FAILED, failed.reason, failed.message)
        self._launch()
        return made

    def resize(self) -> shrink.Resize:
        """One pass over the sizes of pools; removed groups are gone with their workers."""
        found = shrink.resize(
            shrink.Stored(
                pools=tuple(self.pools.values()),
                groups=tuple(self.groups.values()),
                assignments=tuple(self.assignments.values()),
                capacities=self.fleet().capacities,
            ),
            self.now,
            self.ids,
        )
        self.groups |= {each.id: each for each in (*found.mark, *found.add)}
        for each in found.remove:
            del self.groups[each.id]
            self.workers.pop(each.id)
            self.reports.pop(each.id, None)
            self.gone_since.pop(each.id, None)
        self._launch()
        return found

    def end(self, lease_id: ids.LeaseId, state: lease.LeaseState, reason: str, message: str = "") -> None:
        why = lease.LeaseEnd(state=state, reason=reason, message=message, actor="ada", at=self.now)
        held = [booked for booked in self.assignments.values() if booked.lease_id == lease_id]
        self._move(lifecycle.end(self.leases[lease_id], why, holds_bytes=bool(held)))
        for booked in held:
            changed = self.groups[booked.group_id]
            raised = dataclasses.replace(changed, generation=changed.generation + 1)
            self.groups[raised.id] = raised
            self.assignments[lease_id, raised.id] = progress.drained(booked, raised.generation)

    def wish(self, group_id: ids.GroupId) -> desired.Wanted:
        return desired.wanted(self.groups[group_id], self.assignments.values(), self.leases, (), self.endpoints)

    def receive(self, found: group.GroupReport) -> None:
        """A report arrives, perhaps late; reports of groups that are gone are dropped."""
        if found.group_id not in self.groups:
            return
        found = dataclasses.replace(found, received_at=self.now)
        before = self.reports.get(found.group_id)
        self.reports[found.group_id] = found
        self.gone_since.pop(found.group_id, None)
        for booked in [each for each in self.assignments.values() if each.group_id == found.group_id]:
            self._observe(booked, before, found)
            if booked.draining:
                self._release(booked, found)
            else:
                self._progress(booked, found)

    def disconnect(self, group_id: ids.GroupId) -> None:
        """The worker's stream breaks."""
        if (last := self.reports.get(group_id)) is None:
            return
        self.reports[group_id] = dataclasses.replace(last, connected=False)
        self.gone_since.setdefault(group_id, self.now)
        for booked in [each for each in self.assignments.values() if each.group_id == group_id and not each.draining]:
            self._progress(booked, self.reports[group_id])

    def expire(self) -> list[ids.LeaseId]:
        """One pass of the expirer; answers whom it ended."""
        ended = []
        for held in [each for each in self.leases.values() if each.state.living]:
            found = expiry.verdict(held, [self.evidence(held.id)], self.now)
            if isinstance(found, expiry.End):
                self.end(held.id, found.end.state, found.end.reason, found.end.message)
                ended.append(held.id)
        return ended

    def evidence(self, lease_id: ids.LeaseId) -> expiry.Evidence:
        group_id = self.home(lease_id)
        found = None if group_id is None else self.reports.get(group_id)
        if group_id is None or found is None:
            return expiry.Evidence()
        return expiry.Evidence(
            sampled_at=found.true_at,
            activity_known=found.activity_known,
            in_use=activity.in_use(self.leases[lease_id], found),
            worker_gone_since=self.gone_since.get(group_id),
        )

    def home(self, lease_id: ids.LeaseId) -> ids.GroupId | None:
        found = (each.group_id for each in self.assignments.values() if each.lease_id == lease_id and not each.draining)
        return next(found, None)

    def renew(self, lease_id: ids.LeaseId, span: dt.timedelta, *, allow_shorten: bool = False) -> None:
        self._move(expiry.renew(self.leases[lease_id], span, self.now, allow_shorten=allow_shorten))

    def explain(self, lease_id: ids.LeaseId) -> report.Explanation:
        return explain.explain(self.fleet(), self.leases[lease_id])

    def _launch(self) -> None:
        for group_id in self.groups:
            self.workers.setdefault(group_id, workers.Worker(group_id))

    def _observe(self, booked: group.Assignment, before: group.GroupReport | None, found: group.GroupReport) -> None:
        held = self.leases[booked.lease_id]
        self._move(dataclasses.replace(held, last_activity_at=activity.observe(held, before, found)))

    def _release(self, booked: group.Assignment, found: group.GroupReport) -> None:
        here = [each for each in self.assignments.values() if each.group_id == booked.group_id and not each.draining]
        staying = [self.leases[each.lease_id] for each in here]
        if progress.released(self.leases[booked.lease_id], booked, staying, found):
            del self.assignments[booked.lease_id, booked.group_id]
            if not any(each.lease_id == booked.lease_id for each in self.assignments.values()):
                self._move(lifecycle.finish(self.leases[booked.lease_id], self.now))

    def _progress(self, booked: group.Assignment, found: group.GroupReport) -> None:
        held = self.leases[booked.lease_id]
        reachable = self.endpoints[desired.lease_owner(held.id)] in found.endpoints
        seen = progress.of(held, booked, found, reachable=reachable)
        if held.state is lease.LeaseState.ACTIVE:
            self._heal(held, seen)
        elif isinstance(seen, progress.Ready):
            self._move(lifecycle.activate(held, self.now))
        elif isinstance(seen, progress.Loading) and held.state is lease.LeaseState.PLACED:
            self._move(lifecycle.load(held, self.now, seen.message))
        elif isinstance(seen, progress.Failed) and not seen.retryable:
            self.end(held.id, lease.LeaseState.FAILED, "ModelFailed", seen.message)

    def _heal(self, held: lease.Lease, seen: progress.Progress) -> None:
        serving = held.condition("Serving")
        assert serving is not None
        if isinstance(seen, progress.Ready):
            if not serving.status:
                self._move(lifecycle.activate(held, self.now))
        elif isinstance(seen, progress.Lost | progress.Failed):
            self._move(lifecycle.interrupt(held, seen.reason, seen.message, self.now))
        else:
            self._move(lifecycle.interrupt(held, "Loading", "its models are being loaded again", self.now))

    def _move(self, changed: lease.Lease) -> None:
        self.leases[changed.id] = changed
