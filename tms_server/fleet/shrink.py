"""Which empty workers go, and which pools need more.

Decides from what is stored alone: workers added for `min_workers`, empty ones marked and, after their linger, removed.
It never touches a group that holds an assignment, a draining one included.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping

from tms_server.model import group, ids, pool, resources


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """What to write: groups to add, groups to save with `emptied_at` set (same generation), groups to delete.

    `next_at` is when a lingering worker will be due.
    """

    add: tuple[group.WorkerGroup, ...] = ()
    mark: tuple[group.WorkerGroup, ...] = ()
    remove: tuple[group.WorkerGroup, ...] = ()
    next_at: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is stored of pools, groups and assignments. `capacities` holds each pool's worker spec."""

    pools: tuple[pool.Pool, ...]
    groups: tuple[group.WorkerGroup, ...]
    assignments: tuple[group.Assignment, ...]
    capacities: Mapping[resources.WorkerSpec, int]


def resize(stored: Stored, now: dt.datetime, source: ids.IdSource) -> Resize:
    """What has to change so that every pool has its least workers and no empty one stays beyond its linger."""
    pools = {(each.namespace, each.name): each for each in stored.pools if each.deleted_at is None}
    busy = {each.group_id for each in stored.assignments}
    orphans = [each for each in stored.groups if each.id not in busy and _orphan(each, pools)]
    parts = [_of_pool(each, stored, busy, now) for each in _in_order(pools.values())]
    return Resize(
        add=tuple(
            _new(each, stored, now, source) for each in _in_order(pools.values()) for _ in range(_lacks(each, stored))
        ),
        mark=tuple(each for part in parts for each in part.mark),
        remove=(*sorted(orphans, key=_age), *(each for part in parts for each in part.remove)),
        next_at=min((part.next_at for part in parts if part.next_at is not None), default=None),
    )


def _of_pool(owner: pool.Pool, stored: Stored, busy: set[ids.GroupId], now: dt.datetime) -> Resize:
    members = _members(owner, stored)
    empty = [each for each in members if each.id not in busy]
    # The oldest stay: those that join and leave at the margin are always the same few.
    beyond = sorted(empty, key=_age)[max(0, len(empty) - max(0, len(members) - owner.spec.min_workers)) :]
    linger = owner.spec.idle_worker_linger
    due = {each.id: (each.emptied_at or now) + linger for each in beyond}
    return Resize(
        mark=tuple(
            dataclasses.replace(each, emptied_at=now)
            for each in beyond
            if each.emptied_at is None and due[each.id] > now
        ),
        remove=tuple(each for each in beyond if due[each.id] <= now),
        next_at=min((at for at in due.values() if at > now), default=None),
    )


def _lacks(owner: pool.Pool, stored: Stored) -> int:
    return max(0, min(owner.spec.min_workers, owner.spec.max_workers) - len(_members(owner, stored)))


def _members(owner: pool.Pool, stored: Stored) -> list[group.WorkerGroup]:
    return [
        each
        for each in stored.groups
        if (each.namespace, each.pool) == (owner.namespace, owner.name) and each.phase is group.GroupPhase.RUNNING
    ]


def _orphan(each: group.WorkerGroup, pools: Mapping[tuple[ids.Namespace, ids.PoolName], pool.Pool]) -> bool:
    alone = each.pool is None or (each.namespace, each.pool) not in pools
    return alone or each.phase is group.GroupPhase.DRAINING


def _new(owner: pool.Pool, stored: Stored, now: dt.datetime, source: ids.IdSource) -> group.WorkerGroup:
    return group.WorkerGroup(
        id=source.group(),
        namespace=owner.namespace,
        pool=owner.name,
        spec=owner.spec.worker,
        capacity_bytes=stored.capacities[owner.spec.worker],
        framework_class=None,
        phase=group.GroupPhase.RUNNING,
        generation=1,
        token=source.token(),
        created_at=now,
    )


def _in_order(pools: Iterable[pool.Pool]) -> list[pool.Pool]:
    return sorted(pools, key=lambda each: (each.namespace, each.name))


def _age(each: group.WorkerGroup) -> tuple[dt.datetime, ids.GroupId]:
    return each.created_at, each.id
