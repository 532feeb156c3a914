"""One type for each kind of id, so that a checker refuses to mix them. Ids exist before rows do."""

from __future__ import annotations

from typing import NewType, Protocol

Namespace = NewType("Namespace", str)
LeaseId = NewType("LeaseId", str)
LeaseName = NewType("LeaseName", str)
PoolName = NewType("PoolName", str)
GroupId = NewType("GroupId", str)
InstallationId = NewType("InstallationId", str)
Digest = NewType("Digest", str)
"""Lower-case hexadecimal sha256."""

DEFAULT_NAMESPACE = Namespace("default")
DEFAULT_POOL = PoolName("default")


class IdSource(Protocol):
    """Makes ids and secrets; the one place where randomness enters."""

    def lease(self) -> LeaseId: ...

    def group(self) -> GroupId: ...

    def request(self) -> str: ...

    def token(self) -> str: ...
