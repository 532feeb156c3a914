"""Prometheus metrics of the control plane, in a registry of their own.

Labels are bounded: methods, states, reasons, loops, pools. Never a lease, a model or a caller.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

import prometheus_client

from tms_server.model import group, lease

_FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.rpcs = self._counter("tms_rpcs", "Calls answered, by method and gRPC code.", "method", "code")
        self.rpc_seconds = self._histogram("tms_rpc_seconds", "Time to answer unary calls.", _FAST_S, "method")
        self.streams = self._gauge("tms_rpc_streams", "Streams open now, by method.", "method")
        self.leases = self._gauge("tms_leases", "Leases that have not ended, by state.", "state")
        self.created = self._counter("tms_leases_created", "Leases stored.")
        self.placements = self._counter("tms_placements", "Leases given a place.")
        self.ends = self._counter("tms_lease_ends", "Ends decided by the server, by reason.", "reason")
        self.to_active_seconds = self._histogram(
            "tms_lease_to_active_seconds", "From creation to the first ACTIVE.", _SLOW_S
        )
        self.pass_seconds = self._histogram("tms_pass_seconds", "Time of reconciler passes.", _FAST_S, "loop")
        self.pass_failures = self._counter("tms_pass_failures", "Reconciler passes that raised.", "loop")
        self.workers = self._gauge("tms_workers", "Worker groups stored, by pool.", "namespace", "pool")
        self.booked_bytes = self._gauge("tms_booked_bytes", "Bytes booked, by pool.", "namespace", "pool")
        self.capacity_bytes = self._gauge(
            "tms_capacity_bytes", "Bytes that can be booked on running workers, by pool.", "namespace", "pool"
        )
        self.sidecars = self._gauge("tms_sidecars_connected", "Sidecars connected now.")
        self.leads = self._gauge(
            "tms_leads", "1 for the server that decides; of several there is one, or for seconds none."
        )

    def show_fleet(
        self,
        leases: Iterable[lease.Lease],
        groups: Iterable[group.WorkerGroup],
        assignments: Iterable[group.Assignment],
    ) -> None:
        """Sets the gauges of leases and bytes. Dedicated workers are the pool with the empty name."""
        states = collections.Counter(each.state for each in leases)
        for state in lease.LeaseState:
            if not state.ended:
                self.leases.labels(state).set(states[state])
        pools: dict[tuple[str, str], list[group.WorkerGroup]] = {}
        for each in groups:
            pools.setdefault((each.namespace, each.pool or ""), []).append(each)
        booked = collections.Counter[str]()
        for assignment in assignments:
            booked[assignment.group_id] += assignment.booked_bytes
        for gauge in (self.workers, self.booked_bytes, self.capacity_bytes):
            gauge.clear()
        for key, members in pools.items():
            self.workers.labels(*key).set(len(members))
            self.capacity_bytes.labels(*key).set(sum(each.capacity_bytes for each in members))
            self.booked_bytes.labels(*key).set(sum(booked[each.id] for each in members))

    def _counter(self, name: str, text: str, *labels: str) -> prometheus_client.Counter:
        return prometheus_client.Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> prometheus_client.Gauge:
        return prometheus_client.Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> prometheus_client.Histogram:
        return prometheus_client.Histogram(name, text, labels, buckets=buckets, registry=self.registry)
