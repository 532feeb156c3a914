"""Short ways to say what a fleet looks like."""

from __future__ import annotations

import dataclasses
import datetime as dt

from tms_server.leases import lifecycle
from tms_server.model import bundle, group, ids, lease, pool, resources, source
from tms_server.placement import snapshot

START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
COMMAND = "tms-worker"


def s(seconds: float) -> dt.timedelta:
    return dt.timedelta(seconds=seconds)


def at(seconds: float) -> dt.datetime:
    return START + s(seconds)


class Ids:
    """Counts up: w1, w2 ..."""

    def __init__(self) -> None:
        self._made = 0

    def lease(self) -> ids.LeaseId:
        return ids.LeaseId(f"l{self._next()}")

    def group(self) -> ids.GroupId:
        return ids.GroupId(f"w{self._next()}")

    def request(self) -> str:
        return f"r{self._made}"

    def token(self) -> str:
        return f"token-{self._made}"

    def _next(self) -> int:
        self._made += 1
        return self._made


@dataclasses.dataclass(frozen=True)
class M:
    """A model: served name, declared bytes (0: unknown), size and version of its files, framework."""

    name: str
    declared: int = 0
    size: int = 1
    version: str = "v1"
    framework: source.Framework = source.Framework.ONNXRUNTIME
    override: str = ""

    def reference(self) -> lease.ModelReference:
        return lease.ModelReference(
            name=self.name,
            uri=f"model://zoo/{self.name}",
            declared_bytes=self.declared,
            config_override=self.override,
        )

    def source(self) -> source.ModelSource:
        file = source.SourceFile(path=f"1/{self.name}.onnx", size_bytes=self.size, version=self.version)
        return source.ModelSource(uri=f"file:///zoo/{self.name}", framework=self.framework, files=(file,))


@dataclasses.dataclass(frozen=True)
class L:
    """A lease to be; `pool` None and `own` set: a worker of its own."""

    id: str
    models: tuple[M, ...] = (M("m", 10),)
    pool: str = "default"
    own: resources.WorkerSpec | None = None
    times: lease.Times = dataclasses.field(default_factory=lease.Times)
    priority: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    sharing: lease.Sharing = dataclasses.field(default_factory=lease.Sharing)
    created: dt.datetime = START

    def spec(self) -> lease.LeaseSpec:
        return lease.LeaseSpec(
            models=tuple(model.reference() for model in self.models),
            placement=lease.InPool(ids.PoolName(self.pool)) if self.own is None else lease.Dedicated(self.own),
            times=self.times,
            priority=self.priority,
            labels=dict(self.labels),
            sharing=self.sharing,
        )

    def unresolved(self) -> lease.Lease:
        identity = lifecycle.Identity(
            id=ids.LeaseId(self.id), namespace=ids.DEFAULT_NAMESPACE, request_id=f"r-{self.id}", actor="ada"
        )
        return lifecycle.request(identity, self.spec(), self.created)

    def pending(self) -> lease.Lease:
        return lifecycle.resolve(self.unresolved(), [model.source() for model in self.models], self.created)

    def active(self, now: dt.datetime = START) -> lease.Lease:
        return lifecycle.activate(lifecycle.place(self.pending(), now, "somewhere"), now)


def worker(capacity: int = 100, command: str = COMMAND) -> resources.WorkerSpec:
    return resources.WorkerSpec(command=command, resources=resources.Resources(memory_bytes=capacity))


def a_pool(
    name: str = "default", *, capacity: int = 100, least: int = 0, most: int = 4, linger: float = 0
) -> pool.Pool:
    spec = pool.PoolSpec(
        worker=worker(capacity), min_workers=least, max_workers=most, idle_worker_linger=dt.timedelta(seconds=linger)
    )
    return pool.Pool(namespace=ids.DEFAULT_NAMESPACE, name=ids.PoolName(name), spec=spec, created_at=START)


def a_group(
    id_: str,
    *,
    pool: str | None = "default",
    capacity: int = 100,
    class_: str | None = None,
    created: dt.datetime = START,
    phase: group.GroupPhase = group.GroupPhase.RUNNING,
) -> group.WorkerGroup:
    return group.WorkerGroup(
        id=ids.GroupId(id_),
        namespace=ids.DEFAULT_NAMESPACE,
        pool=None if pool is None else ids.PoolName(pool),
        spec=worker(capacity),
        capacity_bytes=capacity,
        framework_class=class_,
        phase=phase,
        generation=1,
        token="secret",
        created_at=created,
    )


def booked(
    owner: lease.Lease, group_id: str, *, generation: int = 1, draining: bool = False, bytes_: int = 10
) -> group.Assignment:
    return group.Assignment(
        lease_id=owner.id,
        group_id=ids.GroupId(group_id),
        copy=0,
        generation=generation,
        booked_bytes=bytes_,
        assigned_at=START,
        draining=draining,
    )


def model_report(model: M, state: group.ModelState = group.ModelState.READY, **more: object) -> group.ModelReport:
    found = model.source()
    from_lease = L("x", (model,)).pending()
    config = bundle_key(from_lease).config_digest
    base = group.ModelReport(name=model.name, source_digest=found.digest, config_digest=config, state=state)
    return dataclasses.replace(base, **more)  # type: ignore[arg-type] # the tests name the fields


def bundle_key(owner: lease.Lease) -> bundle.ModelKey:
    return bundle.models(owner)[0].key


def a_report(group_id: str, *models: group.ModelReport, received: float = 0, **more: object) -> group.GroupReport:
    base = group.GroupReport(
        group_id=ids.GroupId(group_id),
        incarnation="i1",
        epoch=1,
        generation=1,
        server_ready=True,
        activity_known=True,
        received_at=at(received),
        models=models,
    )
    return dataclasses.replace(base, **more)  # type: ignore[arg-type] # the tests name the fields


def fleet(
    *leases: lease.Lease,
    pools: tuple[pool.Pool, ...] | None = None,
    groups: tuple[group.WorkerGroup, ...] = (),
    assignments: tuple[group.Assignment, ...] = (),
    **more: object,
) -> snapshot.Fleet:
    """A fleet with one default pool unless told; every worker spec has the capacity of its memory."""
    pools = (a_pool(),) if pools is None else pools
    specs = snapshot.worker_specs(leases, pools)
    base = snapshot.Fleet(
        leases=leases,
        pools=pools,
        groups=groups,
        assignments=assignments,
        capacities={spec: spec.resources.memory_bytes for spec in specs},
    )
    return dataclasses.replace(base, **more)  # type: ignore[arg-type] # the tests name the fields
