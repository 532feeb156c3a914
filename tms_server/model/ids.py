"""One type for each kind of id, so that a checker refuses to mix them. Ids exist before rows do."""

from __future__ import annotations

from typing import NamedTuple, NewType, Protocol

Namespace = NewType("Namespace", str)
LeaseId = NewType("LeaseId", str)
LeaseName = NewType("LeaseName", str)
PoolName = NewType("PoolName", str)
GroupId = NewType("GroupId", str)
InstallationId = NewType("InstallationId", str)
Digest = NewType("Digest", str)
"""Lower-case hexadecimal sha256."""

ReplicaId = NewType("ReplicaId", str)
"""Of one replica of a worker group: the pod's name; empty where a group has only one."""

ONLY_REPLICA = ReplicaId("")


class WorkerId(NamedTuple):
    """One worker: a replica of a group."""

    group_id: GroupId
    replica: ReplicaId = ONLY_REPLICA


DEFAULT_NAMESPACE = Namespace("default")
DEFAULT_POOL = PoolName("default")


class IdSource(Protocol):
    """Makes ids and secrets; the one place where randomness enters."""

    def lease(self) -> LeaseId: ...

    def group(self) -> GroupId: ...

    def request(self) -> str: ...

    def token(self) -> str: ...
