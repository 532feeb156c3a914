"""Worker groups: what should run (written by the placer), what was seen (written from the sidecars' reports)."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum

from tms_server.model import ids, resources, source


class GroupPhase(enum.StrEnum):
    """What is wanted of a group."""

    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    """Takes no new lease; retires once the last assignment is gone."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGroup:
    """One worker (local process pair) or one Deployment whose replicas hold the same models.

    `pool` is None for a dedicated group. `capacity_bytes` is what models may book. `framework_class` is None until the
    first lease gives it one. `generation` rises with each change of what the sidecar should hold; `token` is the
    sidecar's own secret. `replicas` all hold the same; where the backend scales by itself they are where it begins.
    """

    id: ids.GroupId
    namespace: ids.Namespace
    pool: ids.PoolName | None
    spec: resources.WorkerSpec
    capacity_bytes: int
    framework_class: str | None
    phase: GroupPhase
    generation: int
    token: str = dataclasses.field(repr=False)
    created_at: dt.datetime
    emptied_at: dt.datetime | None = None
    replicas: int = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One copy of a lease's bundle booked on a group.

    `generation` is the group's generation from which the bundle is wanted there. `draining` assignments are no longer
    wanted; their bytes are offered again only after the worker has confirmed the unload.
    """

    lease_id: ids.LeaseId
    group_id: ids.GroupId
    copy: int
    generation: int
    booked_bytes: int
    assigned_at: dt.datetime
    draining: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Bytes a model took after its load; the key says under which circumstances."""

    source_digest: ids.Digest
    config_digest: str
    worker: str
    """Command or image, and device kind, of the worker that measured."""
    bytes: int
    measured_at: dt.datetime


class ModelState(enum.StrEnum):
    """State of one model in one worker, as its sidecar reports it."""

    PENDING = "PENDING"
    FETCHING = "FETCHING"
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    UNLOADED = "UNLOADED"
    FAILED = "FAILED"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model in a sidecar's report. Counters start again at 0 after a reload."""

    name: str
    source_digest: ids.Digest
    config_digest: str
    state: ModelState
    reason: str = ""
    message: str = ""
    fetched_bytes: int = 0
    total_bytes: int = 0
    inference_count: int = 0
    last_inference: dt.datetime | None = None
    in_flight: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    bytes_before_load: int = 0
    bytes_peak_load: int = 0
    bytes_after_load: int = 0
    files: tuple[source.SourceFile, ...] = ()
    retryable: bool = False
    request_count: int = 0
    failure_count: int = 0
    latency: tuple[LatencyBucket, ...] = ()
    fetch_bytes_per_s: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class LatencyBucket:
    """Requests that took at most `upper_us`, counted up from the smallest bucket; 0 for the last, which has all."""

    upper_us: int
    count: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """The latest word of one replica's sidecar. `received_at` is the control plane's clock.

    `replica` is empty where a group has only one. `sampled_at` is when the sidecar asked its worker, never later than received; None where it did not say.
    """

    group_id: ids.GroupId
    incarnation: str
    epoch: int
    generation: int
    server_ready: bool
    activity_known: bool
    received_at: dt.datetime
    models: tuple[ModelReport, ...] = ()
    endpoints: tuple[resources.Endpoint, ...] = ()
    worker_endpoint: resources.Endpoint | None = None
    used_bytes: int = 0
    total_bytes: int = 0
    cache_bytes: int = 0
    server_restarts: int = 0
    connected: bool = True
    sampled_at: dt.datetime | None = None
    replica: ids.ReplicaId = ids.ONLY_REPLICA
    worker_trouble: str = ""
    in_flight_known: bool = False
    gpu_utilization_permille: int | None = None

    @property
    def worker(self) -> ids.WorkerId:
        """Who speaks."""
        return ids.WorkerId(self.group_id, self.replica)

    @property
    def true_at(self) -> dt.datetime:
        """Up to when the report speaks of use: what came to the worker after that is not in it."""
        return self.received_at if self.sampled_at is None else min(self.sampled_at, self.received_at)
