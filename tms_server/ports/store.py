"""The store: durable state behind short units of work.

A unit of work is a plain function that is given a `UnitOfWork` and returns a value. `Store.write` runs it inside one
transaction on the writer and answers after the commit is durable; what it raises rolls its own changes back and reaches
the caller, without harm to other work committed in the same group. Work may run again after a `Conflict` on stores that
let writers overlap, so it must do nothing but call the unit. `Store.read` runs against a consistent snapshot.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from tms_server.model import group, ids, image, lease, pool, resources

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseQuery:
    """Filters and place in the list of leases; newest first. `before` is the (created_at, id) of the last one seen."""

    namespace: ids.Namespace | None = None
    states: frozenset[lease.LeaseState] = frozenset()
    labels: Mapping[str, str] = dataclasses.field(default_factory=lambda: lease.EMPTY)
    pool: ids.PoolName | None = None
    parent_id: ids.LeaseId | None = None
    living_only: bool = False
    before: tuple[dt.datetime, ids.LeaseId] | None = None
    limit: int = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event to be; the store gives it a revision."""

    type: str
    message: str
    actor: str
    at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Installation:
    """Identity of this database: `epoch` is raised when it is restored from a backup."""

    id: ids.InstallationId
    epoch: int
    alive_at: dt.datetime
    """When a server last said that it was alive; an outage is counted from here."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """The server that decides. `term` rises with each new one, `beat` each time it says that it still is there."""

    term: int
    holder: str
    """Empty once it has stepped down."""
    beat: int = 0


class Reader(Protocol):
    """Consistent reads. Sequences are tuples in a stable order (creation, then id)."""

    def installation(self) -> Installation: ...

    def leader(self) -> Leader | None:
        """None before there was one."""
        ...

    def revision(self) -> int:
        """Revision of the last change."""
        ...

    def get_lease(self, lease_id: ids.LeaseId) -> lease.Lease | None: ...

    def leases(self, query: LeaseQuery) -> tuple[lease.Lease, ...]: ...

    def unended_leases(self) -> tuple[lease.Lease, ...]:
        """All leases of all namespaces that have not ended, RELEASING included."""
        ...

    def find_request(self, namespace: ids.Namespace, actor: str, request_id: str) -> tuple[ids.LeaseId, str] | None:
        """The lease made by that request, and the digest of its body."""
        ...

    def events(self, lease_id: ids.LeaseId) -> tuple[lease.LeaseEvent, ...]:
        """The lease's history, oldest first."""
        ...

    def changes(self, after_revision: int, limit: int) -> tuple[lease.LeaseEvent, ...]:
        """Events of all leases after a revision, in commit order.

        RevisionGone when some are no longer kept, or the revision was never given (an older copy was restored).
        """
        ...

    def get_name(self, namespace: ids.Namespace, name: ids.LeaseName) -> lease.NameBinding | None: ...

    def names(self, namespace: ids.Namespace | None = None) -> tuple[lease.NameBinding, ...]: ...

    def names_of(self, lease_id: ids.LeaseId) -> tuple[lease.NameBinding, ...]:
        """Names that point at one lease."""
        ...

    def get_pool(self, namespace: ids.Namespace, name: ids.PoolName) -> pool.Pool | None: ...

    def pools(self, namespace: ids.Namespace | None = None) -> tuple[pool.Pool, ...]: ...

    def get_group(self, group_id: ids.GroupId) -> group.WorkerGroup | None: ...

    def groups(self) -> tuple[group.WorkerGroup, ...]: ...

    def assignments(self, lease_id: ids.LeaseId | None = None) -> tuple[group.Assignment, ...]:
        """Those of all leases, or of one."""
        ...

    def reports(self) -> tuple[group.GroupReport, ...]:
        """The last stored report of each worker; may lag a few seconds behind the live one."""
        ...

    def measurements(self, source_digest: ids.Digest | None = None) -> tuple[group.Measurement, ...]:
        """Those of all models, or of one."""
        ...

    def endpoints(self) -> Mapping[str, resources.Endpoint]:
        """Address of each owner: ``lease/<id>``, ``name/<namespace>/<name>`` or ``group/<id>``."""
        ...

    def get_endpoint(self, owner: str) -> resources.Endpoint | None:
        """Address of one owner."""
        ...

    def image_rules(self) -> tuple[image.ImageRule, ...]:
        """Rules beside those of the settings, by pattern."""
        ...


class UnitOfWork(Reader, Protocol):
    """A reader that can also write; all or nothing."""

    def add_lease(self, new: lease.Lease, body_digest: str, event: NewEvent) -> lease.Lease:
        """Stores a lease and its request id; answers it with its revision. AlreadyExists if the id or request is taken."""
        ...

    def save_lease(self, changed: lease.Lease, event: NewEvent | None = None) -> lease.Lease:
        """Replaces the lease if its stored revision is still `changed.revision`, else Conflict; answers the new one.

        Each save raises the revision, and without an event a nameless one of type ``Changed`` marks it for watchers.
        What never changes after creation is not written. The times of renewal never go back, for renewals may have
        passed since the lease was read; `renew_lease` writes exactly.
        """
        ...

    def renew_lease(
        self, lease_id: ids.LeaseId, renewed_until: dt.datetime | None, last_activity_at: dt.datetime | None
    ) -> None:
        """The hot path: writes the given times only (None: as it is); no revision, no event. NotFound without a lease."""
        ...

    def set_name(self, binding: lease.NameBinding) -> None:
        """Adds or repoints a name; NotFound if there is no such lease."""
        ...

    def delete_name(self, namespace: ids.Namespace, name: ids.LeaseName) -> bool: ...

    def put_pool(self, new: pool.Pool) -> None: ...

    def delete_pool(self, namespace: ids.Namespace, name: ids.PoolName) -> bool: ...

    def put_group(self, new: group.WorkerGroup, expected_generation: int | None) -> None:
        """Adds (None) or replaces a group whose stored generation is as expected, else Conflict."""
        ...

    def delete_group(self, group_id: ids.GroupId) -> None:
        """Also its report; FailedPrecondition while it has assignments."""
        ...

    def put_assignment(self, new: group.Assignment) -> None:
        """Adds or replaces the assignment of (lease, copy, group); NotFound if there is no such lease or group."""
        ...

    def delete_assignment(self, lease_id: ids.LeaseId, group_id: ids.GroupId, copy: int) -> None: ...

    def put_reports(self, reports: Sequence[group.GroupReport]) -> None:
        """Adds or replaces; the late report of a group that is gone is dropped."""
        ...

    def delete_report(self, worker: ids.WorkerId) -> None:
        """Forgets the report of a worker that is gone for good, if there is one."""
        ...

    def put_image_rule(self, new: image.ImageRule) -> None:
        """Adds a rule; one with that pattern stays as it is."""
        ...

    def delete_image_rule(self, pattern: str) -> bool: ...

    def put_measurement(self, new: group.Measurement) -> None:
        """Keeps the greatest value for its key."""
        ...

    def put_endpoint(self, owner: str, endpoint: resources.Endpoint) -> None: ...

    def delete_endpoint(self, owner: str) -> None: ...

    def touch(self, alive_at: dt.datetime) -> None:
        """Says that a server is alive."""
        ...

    def put_leader(self, new: Leader) -> None:
        """Replaces the leader; whether one may is for `reconcilers.election` to say, in the same unit."""
        ...

    def forget_before(self, instant: dt.datetime) -> int:
        """Deletes leases that ended before, with their events, requests, names and endpoints; answers how many.

        A bounded number a call, those that ended first; one that still has assignments is kept.
        """
        ...


class Store(Protocol):
    """Durable state. Safe to call from many tasks of one event loop."""

    @property
    def shared(self) -> bool:
        """Whether other servers may use the same database at the same time."""
        ...

    async def read(self, work: Callable[[Reader], T]) -> T:
        """Runs `work` on a consistent snapshot.

        Unavailable when the database does not answer, ResourceExhausted when too many calls wait; `write` the same.
        """
        ...

    async def write(self, work: Callable[[UnitOfWork], T]) -> T:
        """Runs `work` in a transaction and returns after a durable commit."""
        ...

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls `wake` on the event loop after each commit that raised the revision, by whichever server; answers how to stop.

        Also whenever another server's commit may have been missed.
        """
        ...

    def subscribe_reports(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls `wake` after another server has stored reports, or may have; answers how to stop."""
        ...

    async def close(self) -> None: ...
