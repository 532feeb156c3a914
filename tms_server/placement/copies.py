"""How many copies of a lease there should be, which number a new one gets and which one goes first.

A copy is one group that holds the whole bundle; no group ever holds two of one lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tms_server.model import group, lease


def wanted(held: lease.Lease) -> int:
    """Copies that the lease should have; one with a worker of its own grows by replicas instead."""
    return max(1, held.wanted_copies) if isinstance(held.spec.placement, lease.InPool) else 1


def in_age(booked: Iterable[group.Assignment]) -> tuple[group.Assignment, ...]:
    """Copies, the oldest first."""
    return tuple(sorted(booked, key=lambda each: (each.assigned_at, each.copy, each.group_id)))


def surplus(held: lease.Lease, booked: Sequence[group.Assignment]) -> tuple[group.Assignment, ...]:
    """Copies that are too many, of those not draining: the newest go, for the oldest have most clients."""
    return in_age(booked)[wanted(held) :]


def missing(held: lease.Lease, booked: Sequence[group.Assignment]) -> tuple[int, ...]:
    """Numbers of the copies to be made, the smallest that are free."""
    taken = {each.copy for each in booked}
    lacking = max(0, wanted(held) - len(taken))
    free = (number for number in range(len(taken) + lacking) if number not in taken)
    return tuple(number for number, _ in zip(free, range(lacking), strict=False))
