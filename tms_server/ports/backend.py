"""The backend: what runs workers. Small on purpose; one contract suite runs on every implementation."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Protocol

from tms_server.model import ids, lease, resources


class Phase(enum.StrEnum):
    """How a launched group is, as the backend sees it."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKING_OFF = "BACKING_OFF"
    """It died and is started anew after a pause."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Growth of a group's replicas by the backend itself, after metrics of one lease.

    `load_s` is the longest measured load of its models, 0 while unknown: growth should wait at least so long.
    """

    lease_id: ids.LeaseId
    autoscaling: lease.Autoscaling
    load_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """Everything a backend needs to run one group; the same id launched again is a no-op."""

    group_id: ids.GroupId
    namespace: ids.Namespace
    worker: resources.WorkerSpec
    endpoint: resources.Endpoint
    """Where the worker listens; published before for the owner ``group/<id>``."""
    token: str = dataclasses.field(repr=False)
    """The sidecar proves with it that it belongs to the group."""
    replicas: int = 1
    scaling: Scaling | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Trouble:
    """Why the backend cannot do what is wanted: a stable CamelCase word and a sentence for people.

    Such as Unschedulable, ImagePullFailed, QuotaExceeded, CrashLoop, Evicted, NodeLost, NameTaken, Refused.
    """

    reason: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One worker of a group that exists in the backend.

    `ready`: new connections may reach it. `halted`: its model server does not run, so that it holds nothing.
    """

    id: ids.ReplicaId
    phase: Phase
    ready: bool = False
    halted: bool = False
    node: str = ""
    endpoint: resources.Endpoint | None = None
    restarts: int = 0
    trouble: Trouble | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One group that exists in the backend."""

    group_id: ids.GroupId
    phase: Phase
    restarts: int
    message: str = ""
    replicas: tuple[Replica, ...] = (Replica(id=ids.ONLY_REPLICA, phase=Phase.RUNNING),)
    wanted_replicas: int = 1
    """As launched, or as the backend's own autoscaler wants it now."""
    trouble: Trouble | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where clients of one lease are led. An owner is a ``lease/<id>`` or a ``name/<namespace>/<name>``.

    `owners` are the lease's own address and those of the names that point at it.
    """

    lease_id: ids.LeaseId
    owners: tuple[str, ...]
    workers: frozenset[ids.WorkerId]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A line of a group's output; `source` is ``worker`` or ``sidecar``."""

    group_id: ids.GroupId
    source: str
    text: str
    replica: ids.ReplicaId = ids.ONLY_REPLICA


class Backend(Protocol):
    """Runs worker groups. Every call is idempotent; Unavailable when the backend does not answer."""

    @property
    def routes(self) -> bool:
        """Whether the backend leads clients to workers itself; else the sidecars listen on the published addresses."""
        ...

    @property
    def scales(self) -> bool:
        """Whether groups can have several replicas."""
        ...

    def refuse(self, worker: resources.WorkerSpec) -> str | None:
        """Why it could never run such a worker, as a sentence that names the field; None if it can."""
        ...

    def capacity_bytes(self, worker: resources.WorkerSpec) -> int:
        """Bytes that models may book on such a worker: what was asked for, or the default, less the margin."""
        ...

    def refuse_name(self, namespace: ids.Namespace, name: ids.LeaseName) -> str | None:
        """Why no address could ever be made for such a name, as a sentence; None if it can."""
        ...

    def warn(self, worker: resources.WorkerSpec) -> Trouble | None:
        """What stands against such a worker now but may pass, such as no node with its device; None if nothing."""
        ...

    def differs(self, spec: LaunchSpec) -> bool:
        """Whether what exists of a group is no longer as `launch` with this spec would make it. Answers from memory."""
        ...

    async def route(self, routes: Sequence[Route]) -> Mapping[str, Trouble]:
        """Makes these addresses, all of them, lead to these workers only; those of no route here are removed.

        Returns once new connections go there; answers the owners whose address could not be had. Without effect where
        the sidecars listen themselves.
        """
        ...

    def routed(self, worker: ids.WorkerId) -> frozenset[ids.LeaseId]:
        """Leases whose new connections may still reach that worker. Answers from memory; empty without own routing."""
        ...

    async def observe(self) -> tuple[Observed, ...]:
        """All groups of this installation, those of an earlier run of the server included."""
        ...

    async def launch(self, spec: LaunchSpec) -> None:
        """Starts the group and keeps it running; brings one that differs to this spec without losing requests.

        Returns before it is ready. FailedPrecondition for what the backend refuses for good, ResourceExhausted while
        there is no room for it.
        """
        ...

    async def retire(self, group_id: ids.GroupId) -> None:
        """Stops the group for good; returns when none of its processes is left. Unknown ids are a success."""
        ...

    async def tend(self) -> None:
        """Does what the backend decides by itself, such as moving workers off a machine that is to be emptied.

        For the one server that decides; due whenever `watch` yields.
        """
        ...

    def publish(self, owner: str, taken: Collection[resources.Endpoint]) -> resources.Endpoint:
        """A stable address for an owner, none of `taken`. ResourceExhausted when there is none left."""
        ...

    def logs(self, group_id: ids.GroupId, tail: int, *, follow: bool) -> AsyncIterator[LogLine]:
        """Last lines of a group's worker and sidecar, then, if asked, those to come."""
        ...

    def watch(self) -> AsyncIterator[None]:
        """Yields whenever `observe` may answer something new."""
        ...

    async def close(self) -> None:
        """Lets go of the groups without stopping them, unless the backend was told to stop them at exit."""
        ...
