"""The backend: what runs workers. Small on purpose; one contract suite runs on every implementation."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncIterator, Collection
from typing import Protocol

from tms_server.model import ids, resources


class Phase(enum.StrEnum):
    """How a launched group is, as the backend sees it."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKING_OFF = "BACKING_OFF"
    """It died and is started anew after a pause."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """Everything a backend needs to run one group; the same id launched again is a no-op."""

    group_id: ids.GroupId
    namespace: ids.Namespace
    worker: resources.WorkerSpec
    endpoint: resources.Endpoint
    """Where the worker listens; published before for the owner ``group/<id>``."""
    token: str
    """The sidecar proves with it that it belongs to the group."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One group that exists in the backend."""

    group_id: ids.GroupId
    phase: Phase
    restarts: int
    message: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A line of a group's output; `source` is ``worker`` or ``sidecar``."""

    group_id: ids.GroupId
    source: str
    text: str


class Backend(Protocol):
    """Runs worker groups. Every call is idempotent; Unavailable when the backend does not answer."""

    def refuse(self, worker: resources.WorkerSpec) -> str | None:
        """Why it could never run such a worker, as a sentence that names the field; None if it can."""
        ...

    def capacity_bytes(self, worker: resources.WorkerSpec) -> int:
        """Bytes that models may book on such a worker: what was asked for, or the default, less the margin."""
        ...

    async def observe(self) -> tuple[Observed, ...]:
        """All groups of this installation, those of an earlier run of the server included."""
        ...

    async def launch(self, spec: LaunchSpec) -> None:
        """Starts the group and keeps it running. Returns before it is ready."""
        ...

    async def retire(self, group_id: ids.GroupId) -> None:
        """Stops the group for good; returns when none of its processes is left. Unknown ids are a success."""
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
