"""What a placement decision says: the plan of one pass, and the reason for each lease.

A plan leaves no choice open: every id, byte and generation is in it. Whoever applies it writes `groups` and `assignments`
with the guards given, and moves the leases through `leases.lifecycle`.
"""

from __future__ import annotations

import dataclasses

from tms_server.model import group, ids

NO_CAPACITY = "NoCapacity"
CANNOT_FIT = "CannotFit"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The lease has a place: apply `lifecycle.place(lease, now, message)`."""

    lease_id: ids.LeaseId
    group_id: ids.GroupId
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The lease goes on waiting: apply `lifecycle.wait(lease, reason, message, now)`."""

    lease_id: ids.LeaseId
    reason: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The lease can never fit: end it as FAILED with reason and message."""

    lease_id: ids.LeaseId
    reason: str
    message: str


Decision = Placed | Waiting | Failed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupChange:
    """A group to write with `put_group(group, expected_generation)`; None: it is new."""

    group: group.WorkerGroup
    expected_generation: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All of one pass. Leases that need a place appear in exactly one of `placed`, `waiting` and `failed`.

    Leases that have one and should have more appear in `grown` once for each further copy, and in `short` where they get
    fewer than they should. `drained` are copies too many, as they are to be written.
    `groups` has each new or changed group once; a changed one holds new assignments or drains some (its generation is one
    higher) or is emptied out to make way for a worker of another framework class (phase DRAINING).
    """

    groups: tuple[GroupChange, ...] = ()
    assignments: tuple[group.Assignment, ...] = ()
    placed: tuple[Placed, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    failed: tuple[Failed, ...] = ()
    grown: tuple[Placed, ...] = ()
    short: tuple[Waiting, ...] = ()
    drained: tuple[group.Assignment, ...] = ()

    @property
    def new_groups(self) -> tuple[group.WorkerGroup, ...]:
        return tuple(change.group for change in self.groups if change.expected_generation is None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerVerdict:
    """Whether one worker could take a lease. `rule` is empty when it fits; `held_by` are the leases booked there."""

    group_id: ids.GroupId
    fits: bool
    rule: str
    message: str
    capacity_bytes: int
    free_bytes: int
    missing_bytes: int
    held_by: tuple[ids.LeaseId, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a lease is, or would be, where it is.

    `outcome` is Placed, NoCapacity, CannotFit or another stable word of a condition; `fits` says whether the next pass
    would place it (or it has its place already).
    """

    fits: bool
    outcome: str
    summary: str
    workers: tuple[WorkerVerdict, ...]
    nearest_fit: ids.GroupId | None
    smallest_change: str
    needed_bytes: int
