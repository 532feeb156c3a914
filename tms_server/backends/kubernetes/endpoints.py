"""Which pods the cluster's proxies are told to lead to, lease by lease: what holds back an unload until nobody comes any more.

Kubernetes copies a Service's labels to the slices of its endpoints, so that each slice says for which lease it is.
"""

from __future__ import annotations

import collections
import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

from tms_server import clock as clock_module
from tms_server.backends.kubernetes import names
from tms_server.model import ids

Json = dict[str, Any]
Way = tuple[str, ids.LeaseId]
"""A pod and a lease whose clients reach it."""


class Endpoints:
    """Fed with slices as they change. `wake_at` is told when `reaching` answers something new by itself."""

    def __init__(self, clock: clock_module.Clock, settle: dt.timedelta, wake_at: Callable[[dt.datetime], None]) -> None:
        self._clock = clock
        self._settle = settle
        self._wake_at = wake_at
        self._slices: dict[str, frozenset[Way]] = {}
        self._ways: dict[str, collections.Counter[ids.LeaseId]] = {}
        self._left: dict[str, dict[ids.LeaseId, dt.datetime]] = {}
        """Ways to a pod that are no more, and until when proxies may still follow them."""
        self._ends: collections.deque[tuple[dt.datetime, str]] = collections.deque()

    def saw(self, found: Json, *, present: bool) -> None:
        """Takes in a slice as it is now, or that it is gone."""
        name = found["metadata"]["name"]
        before = self._slices.pop(name, frozenset())
        after = frozenset(ways(found)) if present else frozenset()
        if after:
            self._slices[name] = after
        for pod, lease_id in after - before:
            self._ways.setdefault(pod, collections.Counter())[lease_id] += 1
        for way in before - after:
            self._leave(way)

    def reaching(self, pod: str) -> frozenset[ids.LeaseId]:
        """Leases whose new connections reach the pod, or did until proxies had time to follow."""
        self._forget(self._clock.now())
        return frozenset(self._ways.get(pod, ())) | self._left.get(pod, {}).keys()

    def _leave(self, way: Way) -> None:
        pod, lease_id = way
        counted = self._ways[pod]
        counted[lease_id] -= 1
        if counted[lease_id] > 0:
            return
        del counted[lease_id]
        if not counted:
            del self._ways[pod]
        until = self._clock.now() + self._settle
        self._left.setdefault(pod, {})[lease_id] = until
        self._ends.append((until, pod))
        self._wake_at(until)

    def _forget(self, now: dt.datetime) -> None:
        """They end in the order in which they came."""
        while self._ends and self._ends[0][0] <= now:
            _, pod = self._ends.popleft()
            left = {lease_id: until for lease_id, until in self._left.pop(pod, {}).items() if until > now}
            if left:
                self._left[pod] = left


def ways(found: Json) -> Iterator[Way]:
    """What a slice leads where: its ready endpoints."""
    lease_id = (found["metadata"].get("labels") or {}).get(names.LEASE)
    for endpoint in found.get("endpoints") or []:
        pod = (endpoint.get("targetRef") or {}).get("name")
        if lease_id and pod and (endpoint.get("conditions") or {}).get("ready") is not False:
            yield pod, ids.LeaseId(lease_id)
