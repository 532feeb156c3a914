"""What the workers did of late and how long their models took to load, kept in memory for those who size leases.

Takes reports in whatever order and however often; everything here can be lost and is heard again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable

from tms_server.autoscale import window
from tms_server.model import bundle, group, ids
from tms_server.ports import backend as backend_module
from tms_server.world import live

MOST_LOADS = 10_000


class Usage:
    """Of one server: a track of each worker that was heard."""

    def __init__(self) -> None:
        self._tracks: dict[ids.GroupId, dict[ids.WorkerId, window.Track]] = {}
        self._loads: dict[bundle.ModelKey, dt.timedelta] = {}

    def take(self, reports: Iterable[group.GroupReport]) -> None:
        """Follows the workers; reports that are known already change nothing."""
        for report in reports:
            of_group = self._tracks.setdefault(report.group_id, {})
            before = of_group.get(report.worker)
            if before is not None and before.last is report:
                continue
            track = window.follow(before, report)
            of_group[report.worker] = track
            for key, took in track.loads.items():
                self._loads[key] = max(took, self._loads.get(key, took))

    def of(self, groups: Collection[ids.GroupId]) -> tuple[window.Track, ...]:
        """Tracks of all workers of these groups."""
        return tuple(track for each in groups for track in self._tracks.get(each, {}).values())

    def load(self, keys: Iterable[bundle.ModelKey]) -> dt.timedelta:
        """The longest that any of the models took to load, as far as it was seen; zero while nothing is known."""
        return max((self._loads[key] for key in keys if key in self._loads), default=dt.timedelta(0))

    def keep_only(self, groups: Collection[ids.GroupId], now: dt.datetime) -> None:
        """Forgets workers of groups that are no more or that were not heard for long, and the oldest loads of too many."""
        start = now - 4 * window.WINDOW
        heard = {
            group_id: {key: each for key, each in tracks.items() if each.last.received_at > start}
            for group_id, tracks in self._tracks.items()
            if group_id in groups
        }
        self._tracks = {group_id: tracks for group_id, tracks in heard.items() if tracks}
        self._loads = dict(list(self._loads.items())[-MOST_LOADS:])


def heard_here(known: live.Live, groups: Iterable[ids.GroupId]) -> bool:
    """Whether every worker of these groups speaks to this server; else others hear some, and store what they hear."""
    workers = [worker for each in groups for worker in known.workers(each) or (ids.WorkerId(each),)]
    return all(known.heard(each) is not None and known.gone_since(each) is None for each in workers)


def led_to(
    known: live.Live, backend: backend_module.Backend, groups: Iterable[ids.GroupId], lease_id: ids.LeaseId
) -> int:
    """Workers of these groups that clients of the lease are led to, heard of or not."""
    observed = ((each, known.observed(each)) for each in groups)
    replicas = ((key, replica) for key, found in observed if found is not None for replica in found.replicas)
    return sum(each.ready and lease_id in backend.routed(ids.WorkerId(key, each.id)) for key, each in replicas)
