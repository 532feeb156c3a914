"""Pools: named sets of alike workers that leases share."""

from __future__ import annotations

import dataclasses
import datetime as dt

from tms_server.model import ids, resources

Key = tuple[ids.Namespace, ids.PoolName]
"""What names a pool."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Definition of a pool. An empty worker above `min_workers` is kept for `idle_worker_linger`."""

    worker: resources.WorkerSpec
    min_workers: int = 0
    max_workers: int = 4
    idle_worker_linger: dt.timedelta = dt.timedelta(0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool as stored. `deleted_at` is set while its last leases and workers go."""

    namespace: ids.Namespace
    name: ids.PoolName
    spec: PoolSpec
    created_at: dt.datetime
    deleted_at: dt.datetime | None = None
