"""The fleet arranged for deciding: who is booked where, built once for each decision."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping

from tms_server.model import group, ids, lease, pool, resources
from tms_server.placement import booking, copies, feasible, snapshot


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Books of every group, in the one stable order (creation, then id); `copies` are those wanted, the oldest first."""

    books: Mapping[ids.GroupId, booking.Book]
    members: Mapping[pool.Key, tuple[ids.GroupId, ...]]
    pools: Mapping[pool.Key, pool.Pool]
    copies: Mapping[ids.LeaseId, tuple[group.Assignment, ...]]
    aliases: feasible.Aliases
    known: booking.Measured
    capacities: Mapping[resources.WorkerSpec, int]

    def pool_of(self, asked: lease.Lease) -> pool.Pool | None:
        """The pool that the lease asks for; None if it is gone or going, or the lease wants a worker of its own."""
        placement = asked.spec.placement
        if isinstance(placement, lease.Dedicated):
            return None
        found = self.pools.get((asked.namespace, placement.pool))
        return found if found is not None and found.deleted_at is None else None


def of(fleet: snapshot.Fleet, without: ids.LeaseId | None = None) -> Index:
    """Arranges the fleet, as if the lease `without` were booked nowhere."""
    groups = sorted(fleet.groups, key=_age)
    known = booking.measured(fleet.measurements)
    assignments = [each for each in fleet.assignments if each.lease_id != without]
    present = {each.id for each in groups}
    return Index(
        books=_books(groups, assignments, {each.id: each for each in fleet.leases}, known),
        members=_members(groups),
        pools={(each.namespace, each.name): each for each in fleet.pools},
        copies=_copies(each for each in assignments if not each.draining and each.group_id in present),
        aliases=_aliases(fleet),
        known=known,
        capacities=fleet.capacities,
    )


def _books(
    groups: list[group.WorkerGroup],
    assignments: list[group.Assignment],
    leases: Mapping[ids.LeaseId, lease.Lease],
    known: booking.Measured,
) -> dict[ids.GroupId, booking.Book]:
    books = {each.id: booking.Book(group=each) for each in groups}
    for each in sorted(assignments, key=lambda each: (each.assigned_at, each.lease_id, each.copy)):
        if (book := books.get(each.group_id)) is None:
            continue
        owner = leases.get(each.lease_id)
        if owner is None:
            books[each.group_id] = dataclasses.replace(book, booked_bytes=book.booked_bytes + each.booked_bytes)
        else:
            held = booking.candidate(owner, book.group.spec, known)
            books[each.group_id] = book.adding(held, draining=each.draining)
    return books


def _copies(wanted: Iterable[group.Assignment]) -> dict[ids.LeaseId, tuple[group.Assignment, ...]]:
    found: dict[ids.LeaseId, list[group.Assignment]] = collections.defaultdict(list)
    for each in wanted:
        found[each.lease_id].append(each)
    return {lease_id: copies.in_age(each) for lease_id, each in found.items()}


def _members(groups: list[group.WorkerGroup]) -> dict[pool.Key, tuple[ids.GroupId, ...]]:
    members: dict[pool.Key, list[ids.GroupId]] = collections.defaultdict(list)
    for each in groups:
        if each.pool is not None:
            members[each.namespace, each.pool].append(each.id)
    return {key: tuple(found) for key, found in members.items()}


def _aliases(fleet: snapshot.Fleet) -> dict[ids.LeaseId, frozenset[str]]:
    aliases: dict[ids.LeaseId, set[str]] = collections.defaultdict(set)
    for binding in fleet.names:
        aliases[binding.lease_id].add(binding.name)
    return {lease_id: frozenset(found) for lease_id, found in aliases.items()}


def _age(each: group.WorkerGroup) -> tuple[dt.datetime, ids.GroupId]:
    return each.created_at, each.id
