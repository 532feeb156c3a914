"""From a query to the values that answer it: which leases are meant, who serves them, what their workers did.

Reads the store and what is known in memory; changes nothing.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol

from tms_server import clock as clock_module
from tms_server.autoscale import signals, window
from tms_server.metrics_api import bodies, selectors
from tms_server.model import bundle, ids, lease
from tms_server.ports import backend as backend_module
from tms_server.ports import store as store_module
from tms_server.world import live as live_module
from tms_server.world import usage as usage_module

LEASE, NAMESPACE, QUANTILE = "lease", "namespace", "quantile"
QUANTILES = (500, 900, 950, 990)
STORED_AGAIN = dt.timedelta(seconds=2)
MOST = 1000
"""Most leases that one query answers for."""


class Source(Protocol):
    """Answers queries."""

    async def series(self, kind: lease.MetricKind, namespace: str, selector: selectors.Selector) -> list[bodies.Series]:
        """The values that are selected, those without a value left out."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Served:
    """A living lease, and the groups that hold it."""

    lease: lease.Lease
    groups: frozenset[ids.GroupId]


@dataclasses.dataclass(slots=True, kw_only=True)
class LeaseSource:
    """Values of all leases. `namespace`: the one of Kubernetes where their workers are.

    Workers that speak to other servers are known from what those stored, read at most once in `STORED_AGAIN`.
    """

    namespace: str
    store: store_module.Store
    backend: backend_module.Backend
    live: live_module.Live
    usage: usage_module.Usage
    clock: clock_module.Clock
    window: dt.timedelta = window.WINDOW
    _read_at: dt.datetime | None = dataclasses.field(default=None, init=False)

    async def series(self, kind: lease.MetricKind, namespace: str, selector: selectors.Selector) -> list[bodies.Series]:
        if namespace != self.namespace:
            return []
        only = selector.only(LEASE)
        served = await self.store.read(lambda reader: list(itertools.islice(_served(reader, only), MOST)))
        now = self.clock.now()
        await self._hear({group_id for each in served for group_id in each.groups}, now)
        return [found for each in served for found in self._of(each, kind, selector, now)]

    async def _hear(self, groups: Collection[ids.GroupId], now: dt.datetime) -> None:
        known_lately = self._read_at is not None and now - self._read_at < STORED_AGAIN
        if not known_lately and not usage_module.heard_here(self.live, groups):
            self._read_at = now
            reports, present = await self.store.read(lambda reader: (reader.reports(), reader.groups()))
            self.usage.take(reports)
            self.usage.keep_only({each.id for each in present}, now)
        self.usage.take(self.live.reports())

    def _of(
        self, served: _Served, kind: lease.MetricKind, selector: selectors.Selector, now: dt.datetime
    ) -> Iterator[bodies.Series]:
        named = {LEASE: str(served.lease.id), NAMESPACE: str(served.lease.namespace)}
        asked = [each for each in _labels(named, kind) if selector.matches(each)]
        if not asked:
            return
        keys = [model.key for model in bundle.models(served.lease)]
        expected = usage_module.led_to(self.live, self.backend, served.groups, served.lease.id)
        of = signals.serving(keys, self.usage.of(served.groups), now, expected=expected, window=self.window)
        for labels in asked:
            metric = lease.ScalingMetric(kind=kind, target_milli=1, quantile_permille=int(labels.get(QUANTILE, 0)))
            value = signals.value_milli(of, metric)
            if value is not None:
                yield bodies.Series(kind=kind, labels=labels, value_milli=value, at=now, window=self.window)


def _served(reader: store_module.Reader, only: Iterable[str] | None) -> Iterator[_Served]:
    if only is None:
        groups: dict[ids.LeaseId, set[ids.GroupId]] = {}
        for booked in reader.assignments():
            if not booked.draining:
                groups.setdefault(booked.lease_id, set()).add(booked.group_id)
        found = (each for each in reader.unended_leases() if each.state.living)
        yield from (_Served(each, frozenset(groups.get(each.id, ()))) for each in found)
        return
    for text in sorted(only):
        one = reader.get_lease(ids.LeaseId(text))
        if one is not None and one.state.living:
            held = (each.group_id for each in reader.assignments(one.id) if not each.draining)
            yield _Served(one, frozenset(held))


def _labels(named: Mapping[str, str], kind: lease.MetricKind) -> list[dict[str, str]]:
    if kind is not lease.MetricKind.LATENCY:
        return [dict(named)]
    return [{**named, QUANTILE: str(each)} for each in QUANTILES]
