"""The laws that every plan keeps, stated apart from the planner.

Reads a fleet and a plan for it, adds up everything anew and says what is broken. It shares the definitions (bytes, keys,
selectors) with the planner and none of its bookkeeping.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping

from tms_server.model import bundle, group, ids, lease
from tms_server.placement import booking, copies, feasible, report, snapshot


class LawBroken(AssertionError):
    """A plan that must not be applied; a defect of the planner."""


@dataclasses.dataclass(frozen=True, slots=True)
class Violation:
    """One law broken."""

    law: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _After:
    """The fleet as the plan would leave it."""

    leases: Mapping[ids.LeaseId, lease.Lease]
    groups: Mapping[ids.GroupId, group.WorkerGroup]
    held: Mapping[ids.GroupId, tuple[group.Assignment, ...]]


def enforce(fleet: snapshot.Fleet, plan: report.Plan) -> None:
    """Raises LawBroken if the plan breaks any law."""
    if broken := violations(fleet, plan):
        raise LawBroken("; ".join(f"{each.law}: {each.message}" for each in broken))


def violations(fleet: snapshot.Fleet, plan: report.Plan) -> tuple[Violation, ...]:
    """All laws that the plan breaks; empty when it may be applied."""
    after = _apply(fleet, plan)
    touched = sorted({each.group_id for each in plan.assignments})
    return (
        *_generations(fleet, plan),
        *_nobody_lost(fleet, plan),
        *_one_copy(fleet, plan),
        *_copies(fleet, plan),
        *_pool_sizes(fleet, plan),
        *(found for group_id in touched for found in _group(fleet, after, group_id)),
    )


def _apply(fleet: snapshot.Fleet, plan: report.Plan) -> _After:
    held: dict[ids.GroupId, list[group.Assignment]] = collections.defaultdict(list)
    for each in _booked(fleet, plan):
        held[each.group_id].append(each)
    return _After(
        leases={each.id: each for each in fleet.leases},
        groups={each.id: each for each in (*fleet.groups, *(change.group for change in plan.groups))},
        held={group_id: tuple(found) for group_id, found in held.items()},
    )


def _booked(fleet: snapshot.Fleet, plan: report.Plan) -> list[group.Assignment]:
    """All assignments as the plan leaves them."""
    written = {_key(each): each for each in plan.drained}
    return [*(written.get(_key(each), each) for each in fleet.assignments), *plan.assignments]


def _key(each: group.Assignment) -> tuple[ids.LeaseId, ids.GroupId, int]:
    return each.lease_id, each.group_id, each.copy


def _generations(fleet: snapshot.Fleet, plan: report.Plan) -> Iterator[Violation]:
    """Each change is fenced, and each assignment is wanted from the generation that its group has then."""
    stored = {each.id: each for each in fleet.groups}
    written = {change.group.id: change.group for change in plan.groups}
    if len(written) != len(plan.groups):
        yield Violation("Generations", "a group is written twice")
    for change in plan.groups:
        before = stored.get(change.group.id)
        if change.expected_generation != (None if before is None else before.generation):
            yield Violation("Generations", f"group {change.group.id} expects {change.expected_generation}")
        if change.group.generation != (change.expected_generation or 0) + 1:
            yield Violation("Generations", f"group {change.group.id} is not one generation higher")
    for each in (*plan.assignments, *plan.drained):
        if each.group_id not in written or written[each.group_id].generation != each.generation:
            yield Violation("Generations", f"lease {each.lease_id} is not fenced by group {each.group_id}")


def _nobody_lost(fleet: snapshot.Fleet, plan: report.Plan) -> Iterator[Violation]:
    """Every lease in want of a place is decided on exactly once, and placed where it was said to be."""
    groups = {each.id for each in fleet.groups}
    settled = {each.lease_id for each in fleet.assignments if not each.draining and each.group_id in groups}
    wanting = sorted(each.id for each in fleet.leases if each.state.living and each.id not in settled)
    decisions: tuple[report.Decision, ...] = (*plan.placed, *plan.waiting, *plan.failed)
    decided = sorted(each.lease_id for each in decisions)
    if wanting != decided:
        odd = sorted(set(wanting) ^ set(decided)) or "one of them twice"
        yield Violation("NobodyLost", f"in want of a place and decided on differ: {odd}")
    said = sorted((each.lease_id, each.group_id) for each in (*plan.placed, *plan.grown))
    if said != sorted((each.lease_id, each.group_id) for each in plan.assignments):
        yield Violation("NobodyLost", "the placed leases are not those with assignments")


def _one_copy(fleet: snapshot.Fleet, plan: report.Plan) -> Iterator[Violation]:
    """A copy of a lease is wanted on one group at most."""
    groups = {each.id for each in fleet.groups} | {each.id for each in plan.new_groups}
    wanted = [each for each in _booked(fleet, plan) if not each.draining and each.group_id in groups]
    for (lease_id, copy), count in collections.Counter((each.lease_id, each.copy) for each in wanted).items():
        if count > 1:
            yield Violation("OneCopy", f"copy {copy} of lease {lease_id} is wanted {count} times")


def _copies(fleet: snapshot.Fleet, plan: report.Plan) -> Iterator[Violation]:
    """No plan makes more copies than wanted (one more while a lease moves), takes one that is wanted, or puts two together."""
    stored = {_key(each) for each in fleet.assignments if not each.draining}
    if not {_key(each) for each in plan.drained} <= stored or not all(each.draining for each in plan.drained):
        yield Violation("Copies", "a copy that is not wanted, or not there, is drained")
    leases, groups = {each.id: each for each in fleet.leases}, {each.id: each for each in fleet.groups}
    alive = groups.keys() | {each.id for each in plan.new_groups}
    after = [each for each in _booked(fleet, plan) if not each.draining and each.group_id in alive]
    for lease_id in sorted({each.lease_id for each in (*plan.assignments, *plan.drained)} & leases.keys()):
        here, most = [each for each in after if each.lease_id == lease_id], copies.wanted(leases[lease_id])
        moves = any(
            each.group_id in groups and groups[each.group_id].phase is group.GroupPhase.DRAINING for each in here
        )
        added = any(each.lease_id == lease_id for each in plan.assignments)
        if added and len(here) > most + moves:
            yield Violation("Copies", f"lease {lease_id} would have {len(here)} copies and wants {most}")
        if len(here) < most and any(each.lease_id == lease_id for each in plan.drained):
            yield Violation("Copies", f"lease {lease_id} would have {len(here)} copies only and wants {most}")


def _pool_sizes(fleet: snapshot.Fleet, plan: report.Plan) -> Iterator[Violation]:
    """A plan that adds workers to a pool leaves it within its size."""
    sizes = {(each.namespace, each.name): each.spec.max_workers for each in fleet.pools}
    count = collections.Counter((each.namespace, each.pool) for each in (*fleet.groups, *plan.new_groups))
    for namespace, name in sorted({(each.namespace, each.pool) for each in plan.new_groups if each.pool is not None}):
        if count[namespace, name] > sizes.get((namespace, name), 0):
            yield Violation("PoolSize", f"pool {name} would have {count[namespace, name]} workers")


def _group(fleet: snapshot.Fleet, after: _After, group_id: ids.GroupId) -> Iterator[Violation]:
    """What holds on a group that was given a lease."""
    target, booked = after.groups.get(group_id), after.held[group_id]
    if target is None:
        yield Violation("Owner", f"group {group_id} is neither stored nor new")
        return
    owners = [after.leases[each.lease_id] for each in booked if each.lease_id in after.leases]
    yield from _capacity(fleet, target, booked, owners)
    yield from _names(target, owners)
    yield from _apart(target, booked)
    yield from _homes(target, owners)
    if target.pool is not None:
        yield from _rules(fleet, target, owners, {each.lease_id for each in booked if not each.draining})


def _capacity(
    fleet: snapshot.Fleet,
    target: group.WorkerGroup,
    booked: tuple[group.Assignment, ...],
    owners: list[lease.Lease],
) -> Iterator[Violation]:
    known, kind = booking.measured(fleet.measurements), booking.worker_kind(target.spec)
    sizes: dict[bundle.ModelKey, int] = {}
    for model in (model for owner in owners for model in bundle.models(owner)):
        size, _ = booking.model_bytes(model, kind, known)
        sizes[model.key] = max(size, sizes.get(model.key, 0))
    present = {owner.id for owner in owners}
    total = sum(sizes.values()) + sum(each.booked_bytes for each in booked if each.lease_id not in present)
    if total > target.capacity_bytes:
        yield Violation("Capacity", f"group {target.id} would hold {total} of {target.capacity_bytes} bytes")


def _apart(target: group.WorkerGroup, booked: tuple[group.Assignment, ...]) -> Iterator[Violation]:
    for lease_id, count in collections.Counter(each.lease_id for each in booked).items():
        if count > 1:
            yield Violation("Apart", f"group {target.id} would hold {count} copies of lease {lease_id}")


def _names(target: group.WorkerGroup, owners: list[lease.Lease]) -> Iterator[Violation]:
    keys: dict[str, bundle.ModelKey] = {}
    for model in (model for owner in owners for model in bundle.models(owner)):
        if keys.setdefault(model.key.name, model.key) != model.key:
            yield Violation("NameClash", f"group {target.id} would serve two models as {model.key.name}")


def _homes(target: group.WorkerGroup, owners: list[lease.Lease]) -> Iterator[Violation]:
    for owner in owners:
        placement = owner.spec.placement
        home = placement.pool if isinstance(placement, lease.InPool) else None
        if (owner.namespace, home) != (target.namespace, target.pool):
            yield Violation("Pool", f"lease {owner.id} does not belong on group {target.id}")
        if target.pool is not None and set(bundle.framework_classes(owner)) - {target.framework_class}:
            yield Violation("FrameworkClass", f"lease {owner.id} is of another class than group {target.id}")
    if target.pool is None and len(owners) > 1:
        yield Violation("Pool", f"dedicated group {target.id} would hold {len(owners)} leases")
    if target.phase is group.GroupPhase.DRAINING:
        yield Violation("Draining", f"group {target.id} takes no new leases")


def _rules(
    fleet: snapshot.Fleet, target: group.WorkerGroup, owners: list[lease.Lease], wanted: set[ids.LeaseId]
) -> Iterator[Violation]:
    aliases: dict[ids.LeaseId, frozenset[str]] = collections.defaultdict(frozenset)
    for binding in fleet.names:
        aliases[binding.lease_id] |= {binding.name}
    present = {each.lease_id for each in fleet.assignments if each.group_id == target.id}
    for owner in owners:
        others = [other for other in owners if other.id != owner.id]
        for other in others:
            if any(feasible.matches(selector, other, aliases) for selector in owner.spec.sharing.not_with):
                yield Violation("NotWith", f"leases {owner.id} and {other.id} would meet on group {target.id}")
        if owner.spec.sharing.exclusive and others:
            yield Violation("Exclusive", f"lease {owner.id} would not be alone on group {target.id}")
        if owner.id in present:
            continue
        staying = [other for other in others if other.id in wanted]
        for selector in owner.spec.sharing.share_with:
            if not any(feasible.matches(selector, other, aliases) for other in staying):
                yield Violation("ShareWith", f"lease {owner.id} lacks {selector} on group {target.id}")
