"""What is known in memory only: the last word of each sidecar, use that is not stored yet, what the backend last showed.

Everything here can be lost: it is heard again, or was stored coarsely before. It decides nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping

from tms_server.model import group, ids
from tms_server.ports import backend
from tms_server.world import signal


class Live:
    """Of one server. `changed` tells that a report came or a sidecar went.

    A report is heard first and digested later, when its meaning for the leases was worked out: only a digested report
    may serve as proof of idleness, because its use has been counted.
    """

    def __init__(self) -> None:
        self.changed = signal.Signal()
        self.uses: dict[ids.LeaseId, dt.datetime] = {}
        """Last use of leases, newer than what is stored."""
        self.store_silent_since: dt.datetime | None = None
        """Set while the store does not answer: nothing may expire then."""
        self._heard: dict[ids.GroupId, group.GroupReport] = {}
        self._digested: dict[ids.GroupId, group.GroupReport] = {}
        self._gone: dict[ids.GroupId, dt.datetime] = {}
        self._observed: dict[ids.GroupId, backend.Observed] = {}
        self._troubles: dict[ids.GroupId, str] = {}

    def restore(self, stored: Iterable[group.GroupReport], now: dt.datetime) -> None:
        """Takes up the reports of an earlier server; their sidecars count as gone from now until they connect."""
        for report in stored:
            self._heard[report.group_id] = self._digested[report.group_id] = report
            self._gone[report.group_id] = now

    def hear(self, report: group.GroupReport) -> None:
        """A connected sidecar's report."""
        self._heard[report.group_id] = report
        self._gone.pop(report.group_id, None)
        self.changed.notify()

    def lose(self, group_id: ids.GroupId, now: dt.datetime) -> None:
        """The sidecar's stream has ended."""
        self._gone.setdefault(group_id, now)
        self.changed.notify()

    def heard(self, group_id: ids.GroupId) -> group.GroupReport | None:
        """The last report, connected or not."""
        return self._heard.get(group_id)

    def digested(self, group_id: ids.GroupId) -> group.GroupReport | None:
        """The last report whose use has been counted."""
        return self._digested.get(group_id)

    def digest(self, reports: Iterable[group.GroupReport]) -> None:
        """Notes that the use in these reports has been counted."""
        for report in reports:
            self._digested[report.group_id] = report

    def gone_since(self, group_id: ids.GroupId) -> dt.datetime | None:
        """Since when the sidecar is not connected; None while it is, and before it ever was."""
        return self._gone.get(group_id)

    def reports(self) -> tuple[group.GroupReport, ...]:
        """The last report of each group."""
        return tuple(self._heard.values())

    def observe(self, observed: Iterable[backend.Observed]) -> None:
        """What the backend shows now."""
        self._observed = {each.group_id: each for each in observed}

    def observed(self, group_id: ids.GroupId) -> backend.Observed | None:
        """The group as the backend last showed it."""
        return self._observed.get(group_id)

    def trouble(self, group_id: ids.GroupId, message: str | None) -> None:
        """Why the group could not be launched; None when it could."""
        if message is None:
            self._troubles.pop(group_id, None)
        else:
            self._troubles[group_id] = message

    @property
    def troubles(self) -> Mapping[ids.GroupId, str]:
        """Groups that could not be launched, with the reason."""
        return self._troubles

    def keep_only(self, groups: Collection[ids.GroupId], leases: Collection[ids.LeaseId]) -> None:
        """Forgets groups and leases that are no more."""
        for known in (self._heard, self._digested, self._gone, self._troubles):
            for group_id in [each for each in known if each not in groups]:
                del known[group_id]
        for lease_id in [each for each in self.uses if each not in leases]:
            del self.uses[lease_id]
