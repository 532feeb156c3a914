"""The lease: a time-limited right to have a bundle of models served together."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Mapping
from types import MappingProxyType

from tms_server.model import ids, resources, source

EMPTY: Mapping[str, str] = MappingProxyType({})


class LeaseState(enum.StrEnum):
    """Where a lease is; the conditions say why."""

    PENDING = "PENDING"
    PLACED = "PLACED"
    LOADING = "LOADING"
    ACTIVE = "ACTIVE"
    RELEASING = "RELEASING"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"
    FAILED = "FAILED"
    REVOKED = "REVOKED"

    @property
    def ended(self) -> bool:
        """Nothing follows, and no bytes are held."""
        return self in ENDED

    @property
    def living(self) -> bool:
        """Wanted by its owner: neither ended nor on the way out."""
        return not self.ended and self is not LeaseState.RELEASING


ENDED = frozenset({LeaseState.RELEASED, LeaseState.EXPIRED, LeaseState.FAILED, LeaseState.REVOKED})


class Renewal(enum.StrEnum):
    """What keeps a lease alive past its hold."""

    ON_ACTIVITY = "on_activity"
    KEEPALIVE = "keepalive"
    MANUAL = "manual"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """One model as asked for."""

    name: str
    uri: str
    framework: source.Framework | None = None
    declared_bytes: int = 0
    config_override: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The clocks of a lease; all start at the first ACTIVE, but `pending_timeout`, which starts at creation."""

    hold: dt.timedelta = dt.timedelta(minutes=10)
    activity_window: dt.timedelta = dt.timedelta(minutes=10)
    max_lifetime: dt.timedelta | None = None
    pending_timeout: dt.timedelta = dt.timedelta(hours=1)
    renewal: Renewal = Renewal.ON_ACTIVITY


@dataclasses.dataclass(frozen=True, slots=True)
class InPool:
    """Asks for a shared worker of a pool."""

    pool: ids.PoolName


@dataclasses.dataclass(frozen=True, slots=True)
class Dedicated:
    """Asks for a worker of its own, in so many replicas; with autoscaling they are where it begins."""

    worker: resources.WorkerSpec
    replicas: int = 1


Placement = InPool | Dedicated


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Who may share a worker with the lease. A selector is a lease id, a lease name or ``key=value`` of a label."""

    share_with: tuple[str, ...] = ()
    not_with: tuple[str, ...] = ()
    exclusive: bool = False


class MetricKind(enum.StrEnum):
    """What growth can follow; the unit of each is told in the API's definition."""

    QUEUE_TIME = "queue_time"
    QUEUE_RATIO = "queue_ratio"
    IN_FLIGHT = "in_flight"
    REQUEST_RATE = "request_rate"
    LATENCY = "latency"
    GPU_UTILIZATION = "gpu_utilization"
    MODEL_MEMORY = "model_memory"

    @property
    def of_whole(self) -> bool:
        """A value of the lease as a whole (a time, a ratio, a share); others are sums, divided by the replicas."""
        return self not in (MetricKind.IN_FLIGHT, MetricKind.REQUEST_RATE, MetricKind.MODEL_MEMORY)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScalingMetric:
    """Grow while the metric is above its target, in thousandths of the kind's unit. `quantile_permille`: of LATENCY."""

    kind: MetricKind
    target_milli: int
    quantile_permille: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScalingBehavior:
    """How fast. A window of None is the default; a step of 0 has no bound."""

    scale_up_window: dt.timedelta | None = None
    scale_down_window: dt.timedelta | None = None
    max_step_up: int = 0
    max_step_down: int = 0
    period: dt.timedelta = dt.timedelta(seconds=15)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """Between which sizes a lease grows, and after what. `metrics` is never empty once validated."""

    min_replicas: int
    max_replicas: int
    metrics: tuple[ScalingMetric, ...]
    behavior: ScalingBehavior = ScalingBehavior()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSpec:
    """All that the owner asked for; never changes after creation."""

    models: tuple[ModelReference, ...]
    placement: Placement
    times: Times = Times()
    priority: int = 0
    labels: Mapping[str, str] = dataclasses.field(default_factory=lambda: EMPTY)
    sharing: Sharing = Sharing()
    parent_id: ids.LeaseId | None = None
    autoscaling: Autoscaling | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A typed explanation: `type` and `reason` are stable CamelCase words, `message` is for people."""

    type: str
    status: bool
    reason: str
    message: str
    changed_at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnd:
    """Why, by whom and when a lease ended. `state` is where RELEASING leads."""

    state: LeaseState
    reason: str
    message: str
    actor: str
    at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A lease as stored.

    `sources` is empty until every model is resolved, then in the order of `spec.models`. `renewed_until` is the latest
    explicit renewal. `credit` is the time that the control plane was down, added to every deadline. `generation` rises
    with each change of what is wanted, `revision` with each stored change. `wanted_copies` are the workers of a pool that
    should each hold the whole bundle; the autoscaler moves it.
    """

    id: ids.LeaseId
    namespace: ids.Namespace
    spec: LeaseSpec
    request_id: str
    actor: str
    state: LeaseState
    created_at: dt.datetime
    generation: int = 1
    revision: int = 0
    sources: tuple[source.ModelSource, ...] = ()
    conditions: tuple[Condition, ...] = ()
    active_at: dt.datetime | None = None
    renewed_until: dt.datetime | None = None
    last_activity_at: dt.datetime | None = None
    credit: dt.timedelta = dt.timedelta(0)
    end: LeaseEnd | None = None
    wanted_copies: int = 1

    def condition(self, type_: str) -> Condition | None:
        """The condition of that type, if any."""
        return next((condition for condition in self.conditions if condition.type == type_), None)

    def with_condition(self, condition: Condition) -> Lease:
        """Replaces the condition of its type; the time of change stays when nothing but the time differs."""
        before = self.condition(condition.type)
        if before is not None and dataclasses.replace(condition, changed_at=before.changed_at) == before:
            return self
        others = tuple(other for other in self.conditions if other.type != condition.type)
        ordered = tuple(sorted((*others, condition), key=lambda each: each.type))
        return dataclasses.replace(self, conditions=ordered)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEvent:
    """One line of a lease's history."""

    revision: int
    lease_id: ids.LeaseId
    namespace: ids.Namespace
    at: dt.datetime
    type: str
    message: str
    actor: str
    state: LeaseState


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NameBinding:
    """A stable name and the lease it points at."""

    namespace: ids.Namespace
    name: ids.LeaseName
    lease_id: ids.LeaseId
    changed_at: dt.datetime
