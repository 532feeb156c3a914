"""What use cases work with; made once, by app.py."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable

from tms_server import clock as clock_module
from tms_server.model import errors, ids, lease, pool, resources
from tms_server.observability import metrics as metrics_module
from tms_server.ports import backend as backend_module
from tms_server.ports import resolver as resolver_module
from tms_server.ports import store as store_module
from tms_server.world import live as live_module
from tms_server.world import signal
from tms_server.world import usage as usage_module


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Ports and shared state. `changed` tells that the store or a worker's word changed; `wake` wakes the reconcilers."""

    store: store_module.Store
    backend: backend_module.Backend
    resolver: resolver_module.Resolver
    clock: clock_module.Clock
    ids: ids.IdSource
    live: live_module.Live
    metrics: metrics_module.Metrics
    changed: signal.Signal
    usage: usage_module.Usage = dataclasses.field(default_factory=usage_module.Usage)
    resolve_bound: dt.timedelta = dt.timedelta(seconds=3)
    autoscaled: Callable[[], bool] = lambda: True
    """Whether an autoscaler of the backend's own sizes dedicated groups; else TMS does."""
    images: tuple[str, ...] = ()
    """Rules of the settings for images that may be asked for."""
    declared: frozenset[pool.Key] = frozenset()
    """Pools that the settings keep."""
    lost_after: dt.timedelta = dt.timedelta(seconds=10)
    times: lease.Times = dataclasses.field(default_factory=lease.Times)
    """Those of leases that do not say their own."""


def refuse_worker(backend: backend_module.Backend, path: str, worker: resources.WorkerSpec) -> None:
    """Raises what the backend says against a worker: Unimplemented for containers, else InvalidField at the field."""
    reason = backend.refuse(worker)
    if reason is None:
        return
    field, _, remedy = reason.partition(": ")
    if field == "image" and not backend.scales:
        raise errors.Unimplemented(f"{path}.{field}: {remedy}")
    raise errors.InvalidField(f"{path}.{field}", remedy)


def refuse_name(backend: backend_module.Backend, namespace: ids.Namespace, name: ids.LeaseName) -> None:
    """InvalidField for a name that can have no address on this backend."""
    reason = backend.refuse_name(namespace, name)
    if reason is not None:
        raise errors.InvalidField("name", reason.removeprefix("name: "))
