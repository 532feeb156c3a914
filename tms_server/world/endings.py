"""Units of work that end leases and let go of what they held.

An end is one write: the lease, its children, its assignments and the generations of their groups. The lease is over when
the last assignment is confirmed gone. Nothing here decides that an end is due.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator

from tms_server.fleet import desired
from tms_server.leases import lifecycle, progress
from tms_server.model import group, ids, lease
from tms_server.ports import store

PAGE = 1000
FINAL_EVENT = {
    lease.LeaseState.RELEASED: "Released",
    lease.LeaseState.EXPIRED: "Expired",
    lease.LeaseState.FAILED: "Failed",
    lease.LeaseState.REVOKED: "Revoked",
}


def end(unit: store.UnitOfWork, ending: lease.Lease, why: lease.LeaseEnd) -> lease.Lease:
    """Ends one living lease, as stored, with its children; answers it with its new revision."""
    return end_all(unit, [(ending, why)])[0]


def end_all(unit: store.UnitOfWork, endings: Iterable[tuple[lease.Lease, lease.LeaseEnd]]) -> tuple[lease.Lease, ...]:
    """Ends living leases with their children; answers those asked for, in order."""
    ended = []
    for ending, why in endings:
        # An end before may have taken this one along as a child.
        stored = unit.get_lease(ending.id)
        if stored is None or not stored.state.living:
            ended.append(stored or ending)
            continue
        ended.append(_end_one(unit, stored, why))
        _end_children(unit, stored, why)
    return tuple(ended)


def confirm(unit: store.UnitOfWork, gone: Iterable[group.Assignment], now: dt.datetime) -> None:
    """The worker holds nothing for these draining assignments any more; a lease that held only these is over."""
    confirmed = list(gone)
    for assignment in confirmed:
        unit.delete_assignment(assignment.lease_id, assignment.group_id, assignment.copy)
    for lease_id in dict.fromkeys(each.lease_id for each in confirmed):
        stored = unit.get_lease(lease_id)
        if stored is not None and stored.state is lease.LeaseState.RELEASING and not unit.assignments(lease_id):
            _finish(unit, stored, now)


def revoke_for_parent(why: lease.LeaseEnd, parent_id: ids.LeaseId) -> lease.LeaseEnd:
    """The end of a child whose parent has ended."""
    return lease.LeaseEnd(
        state=lease.LeaseState.REVOKED,
        reason="ParentEnded",
        message=f"its parent {parent_id} ended: {why.reason}",
        actor=why.actor,
        at=why.at,
    )


def _end_one(unit: store.UnitOfWork, ending: lease.Lease, why: lease.LeaseEnd) -> lease.Lease:
    held = unit.assignments(ending.id)
    for assignment in held:
        if not assignment.draining:
            unit.put_assignment(progress.drained(assignment, bump(unit, assignment.group_id)))
    ended = lifecycle.end(ending, why, holds_bytes=bool(held))
    type_ = FINAL_EVENT[ended.state] if ended.state.ended else "Releasing"
    event = store.NewEvent(type=type_, message=f"{why.reason}: {why.message}", actor=why.actor, at=why.at)
    saved = unit.save_lease(ended, event)
    if saved.state.ended:
        unit.delete_endpoint(desired.lease_owner(saved.id))
    return saved


def _end_children(unit: store.UnitOfWork, parent: lease.Lease, why: lease.LeaseEnd) -> None:
    parents = collections.deque([parent])
    while parents:
        above = parents.popleft()
        for child in list(_living_children(unit, above)):
            _end_one(unit, child, revoke_for_parent(why, above.id))
            parents.append(child)


def _living_children(unit: store.UnitOfWork, parent: lease.Lease) -> Iterator[lease.Lease]:
    query = store.LeaseQuery(namespace=parent.namespace, parent_id=parent.id, living_only=True, limit=PAGE)
    while page := unit.leases(query):
        yield from (each for each in page if each.state.living)
        query = dataclasses.replace(query, before=(page[-1].created_at, page[-1].id))


def bump(unit: store.UnitOfWork, group_id: ids.GroupId) -> int:
    """Raises a group's generation because what it should hold changes; answers the new one (0 where the group is gone)."""
    stored = unit.get_group(group_id)
    if stored is None:
        return 0
    unit.put_group(dataclasses.replace(stored, generation=stored.generation + 1), stored.generation)
    return stored.generation + 1


def _finish(unit: store.UnitOfWork, releasing: lease.Lease, now: dt.datetime) -> None:
    finished = lifecycle.finish(releasing, now)
    why = releasing.end
    message = f"{why.reason}: {why.message}" if why is not None else ""
    event = store.NewEvent(type=FINAL_EVENT[finished.state], message=message, actor="system", at=now)
    unit.save_lease(finished, event)
    unit.delete_endpoint(desired.lease_owner(finished.id))
