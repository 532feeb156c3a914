"""What is known in memory only: the last word of each sidecar, use that is not stored yet, what the backend last showed.

Everything here can be lost: it is heard again, or was stored coarsely before. It decides nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping

from tms_server.model import group, ids
from tms_server.ports import backend
from tms_server.world import signal

_DOUBTED_REPORTS = 3


class Live:
    """Of one server. `changed` tells that a report came, a sidecar went, or the backend shows something new.

    A report is heard first and digested later, when its meaning for the leases was worked out: only a digested report
    may serve as proof of idleness, because its use has been counted.
    """

    def __init__(self) -> None:
        self.changed = signal.Signal()
        self.moved = signal.Signal()
        """Tells what `changed` tells, but for reports that say nothing new of what a worker can serve."""
        self.uses: dict[ids.LeaseId, dt.datetime] = {}
        """Last use of leases, newer than what is stored."""
        self.store_silent_since: dt.datetime | None = None
        """Set while the store does not answer: nothing may expire then."""
        self.warm_from: dt.datetime | None = None
        """When an earlier server's workers were taken up; their sidecars need a while to come back."""
        self.untold: Mapping[str, backend.Trouble] = {}
        """Owners whose address could not be had, with the reason."""
        self._heard: dict[ids.WorkerId, group.GroupReport] = {}
        self._digested: dict[ids.WorkerId, group.GroupReport] = {}
        self._gone: dict[ids.WorkerId, dt.datetime] = {}
        self._overheard: set[ids.WorkerId] = set()
        self._observed: dict[ids.GroupId, backend.Observed] = {}
        self._replicas: dict[ids.GroupId, dict[ids.WorkerId, backend.Replica]] = {}
        self._vanished: set[ids.WorkerId] = set()
        self._speakers: dict[ids.GroupId, set[ids.WorkerId]] = {}
        self._troubles: dict[ids.GroupId, backend.Trouble] = {}
        self._doubted: dict[ids.WorkerId, int] = {}
        """Workers that died and run again, with the reports that are still to be taken as said before their death."""

    def restore(self, stored: Iterable[group.GroupReport], now: dt.datetime) -> None:
        """Takes up the reports of an earlier server; their sidecars count as gone from now until they connect."""
        self.warm_from = now
        for report in stored:
            self._keep(report)
            self._overheard.add(report.worker)
            self._digested[report.worker] = report
            self._gone[report.worker] = now

    def hear(self, report: group.GroupReport) -> None:
        """A connected sidecar's report."""
        self._overheard.discard(report.worker)
        self._take(report)

    def overhear(self, report: group.GroupReport) -> None:
        """The report of a sidecar that is connected to another server."""
        self._overheard.add(report.worker)
        self._take(report)

    def own(self) -> tuple[group.GroupReport, ...]:
        """Those of `reports` that were said to this server, which alone stores them."""
        return tuple(each for each in self.reports() if each.worker not in self._overheard)

    def lose(self, worker: ids.WorkerId, now: dt.datetime) -> None:
        """The sidecar's stream has ended."""
        self._gone.setdefault(worker, now)
        self.changed.notify()
        self.moved.notify()

    def heard(self, worker: ids.WorkerId) -> group.GroupReport | None:
        """The last report, connected or not."""
        return self._heard.get(worker)

    def heard_of(self, group_id: ids.GroupId) -> tuple[group.GroupReport, ...]:
        """The last reports of a group's workers that may exist, in the order of their names."""
        return tuple(self._heard[each] for each in self.workers(group_id) if each in self._heard)

    def digested(self, worker: ids.WorkerId) -> group.GroupReport | None:
        """The last report whose use has been counted."""
        return self._digested.get(worker)

    def digest(self, reports: Iterable[group.GroupReport]) -> None:
        """Notes that the use in these reports has been counted."""
        for report in reports:
            self._digested[report.worker] = report

    def gone_since(self, worker: ids.WorkerId) -> dt.datetime | None:
        """Since when the sidecar is not connected; None while it is, and before it ever was."""
        return self._gone.get(worker)

    def reports(self) -> tuple[group.GroupReport, ...]:
        """The last report of each worker that the backend does not say to be gone."""
        return tuple(report for worker, report in self._heard.items() if worker not in self._vanished)

    def observe(self, observed: Iterable[backend.Observed]) -> bool:
        """What the backend shows now; answers whether that is new. A replica that it shows no more has vanished."""
        seen = {each.group_id: each for each in observed}
        if seen == self._observed:
            return False
        replicas = {
            key: {ids.WorkerId(key, replica.id): replica for replica in each.replicas} for key, each in seen.items()
        }
        present = {worker for each in replicas.values() for worker in each}
        before = {worker for each in self._replicas.values() for worker in each}
        died = {each for each in before if self._died(each)}
        # One that spoke to an earlier server only, and is not shown, went while nobody looked.
        silent = {each for each in self._gone if each.replica != ids.ONLY_REPLICA}
        self._vanished = (self._vanished | before | silent) - present
        self._observed, self._replicas = seen, replicas
        self._doubted = {each: left for each, left in self._doubted.items() if each in present}
        self._doubted |= {each: _DOUBTED_REPORTS for each in died & present if each in self._heard}
        self.changed.notify()
        self.moved.notify()
        return True

    def observed(self, group_id: ids.GroupId) -> backend.Observed | None:
        """The group as the backend last showed it."""
        return self._observed.get(group_id)

    def replica(self, worker: ids.WorkerId) -> backend.Replica | None:
        """One worker as the backend last showed it."""
        return self._replicas.get(worker.group_id, {}).get(worker)

    def down(self, worker: ids.WorkerId) -> str:
        """How the worker died that the backend starts anew; empty while it has not, and once its sidecar knows."""
        if found := self._died(worker):
            return found
        return "its sidecar has not noticed yet" if worker in self._doubted else ""

    def _died(self, worker: ids.WorkerId) -> str:
        observed, replica = self._observed.get(worker.group_id), self.replica(worker)
        if observed is None or replica is None:
            return ""
        alone = worker.replica == ids.ONLY_REPLICA
        if (observed.phase if alone else replica.phase) is not backend.Phase.BACKING_OFF:
            return ""
        said = observed.message if alone else (replica.trouble.message if replica.trouble is not None else "")
        return said or "it died"

    def let_go(self, worker: ids.WorkerId) -> bool:
        """Whether it is a replica that the backend showed once and shows no more; only those never come back."""
        return worker.replica != ids.ONLY_REPLICA and worker in self._vanished

    def let_in(self, worker: ids.WorkerId) -> bool:
        """Whether the backend lets new connections reach it; where there are no replicas, that is the sidecar's to say."""
        replica = self.replica(worker)
        return replica is None or worker.replica == ids.ONLY_REPLICA or replica.ready

    def groups(self) -> tuple[ids.GroupId, ...]:
        """All groups of which anything is known."""
        return tuple(sorted(self._observed.keys() | self._speakers.keys() | self._troubles.keys()))

    def workers(self, group_id: ids.GroupId) -> tuple[ids.WorkerId, ...]:
        """Workers of a group that may exist: those that the backend shows, and those that spoke and did not vanish."""
        spoke = self._speakers.get(group_id, set()) - self._vanished
        return tuple(sorted(spoke | self._replicas.get(group_id, {}).keys()))

    def trouble(self, group_id: ids.GroupId, trouble: backend.Trouble | None) -> None:
        """Why the group could not be launched; None when it could."""
        if self._troubles.get(group_id) == trouble:
            return
        if trouble is None:
            del self._troubles[group_id]
        else:
            self._troubles[group_id] = trouble
        self.changed.notify()

    @property
    def troubles(self) -> Mapping[ids.GroupId, backend.Trouble]:
        """Groups that could not be launched, with the reason."""
        return self._troubles

    def keep_only(self, groups: Collection[ids.GroupId], leases: Collection[ids.LeaseId]) -> tuple[ids.WorkerId, ...]:
        """Forgets groups and leases that are no more, and workers that vanished; answers the latter."""
        vanished = tuple(sorted(each for each in self._vanished if each in self._heard))
        for known in (self._heard, self._digested, self._gone):
            for worker in [each for each in known if each.group_id not in groups or each in self._vanished]:
                del known[worker]
        for group_id in [each for each in self._troubles if each not in groups]:
            del self._troubles[group_id]
        self._speakers = {key: kept for key, each in self._speakers.items() if (kept := each & self._heard.keys())}
        self._vanished = {each for each in self._vanished if each.group_id in groups}
        self._overheard &= self._heard.keys()
        for lease_id in [each for each in self.uses if each not in leases]:
            del self.uses[lease_id]
        return vanished

    def _take(self, report: group.GroupReport) -> None:
        before = self._heard.get(report.worker)
        back = self._gone.pop(report.worker, None) is not None
        back |= self._believe(before, report)
        self._keep(report)
        self.changed.notify()
        if back or before is None or _serving(before) != _serving(report):
            self.moved.notify()

    def _believe(self, before: group.GroupReport | None, report: group.GroupReport) -> bool:
        """Whether a worker that had died is believed again: its sidecar speaks of a new life, or has had the time to."""
        left = self._doubted.get(report.worker)
        if left is None or self._died(report.worker):
            return False
        told = before is None or not report.server_ready or _life(before) != _life(report)
        if told or left <= 1:
            del self._doubted[report.worker]
            return True
        self._doubted[report.worker] = left - 1
        return False

    def _keep(self, report: group.GroupReport) -> None:
        self._heard[report.worker] = report
        self._speakers.setdefault(report.group_id, set()).add(report.worker)


def _life(report: group.GroupReport) -> tuple[str, int]:
    return report.incarnation, report.server_restarts


def _serving(report: group.GroupReport) -> tuple[object, ...]:
    """What a worker can serve."""
    models = tuple((each.name, each.source_digest, each.config_digest, each.state) for each in report.models)
    return report.epoch, report.generation, report.server_ready, models
