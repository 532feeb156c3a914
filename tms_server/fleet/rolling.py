"""Which workers of a pool are brought to the pool's definition next, decided purely.

One group of a pool at a time: the next only once every worker of the one before is of the new shape and ready, or its
time is up. Groups keep their generation, for what they should hold does not change.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Iterable, Mapping

from tms_server.model import group, ids, pool, resources

BOUND = dt.timedelta(minutes=10)
"""How long the others wait for a group that does not become ready; its old workers serve on meanwhile."""


@dataclasses.dataclass(frozen=True, slots=True)
class Roll:
    """A group on its way to a new shape, and the replicas of the old one."""

    began_at: dt.datetime
    before: frozenset[ids.ReplicaId]


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """A group as it is: its replicas, whether all that are wanted are ready, whether it still has to be brought over."""

    replicas: frozenset[ids.ReplicaId]
    whole: bool


def over(roll: Roll, shape: Shape | None, now: dt.datetime) -> bool:
    """Whether nobody has to wait for that group any more."""
    if now - roll.began_at >= BOUND:
        return True
    return shape is not None and shape.whole and not (roll.before & shape.replicas)


def ends_at(rolls: Iterable[Roll]) -> dt.datetime | None:
    """When the first of these waits is over at the latest."""
    return min((each.began_at + BOUND for each in rolls), default=None)


def outdated(pools: Iterable[pool.Pool], groups: Collection[group.WorkerGroup]) -> tuple[group.WorkerGroup, ...]:
    """Running groups whose shape is not that of their pool, oldest first."""
    specs = _specs(pools)
    found = (
        each
        for each in groups
        if each.phase is group.GroupPhase.RUNNING and specs.get((each.namespace, each.pool), each.spec) != each.spec
    )
    return tuple(sorted(found, key=lambda each: (each.created_at, each.id)))


def due(
    pools: Iterable[pool.Pool], groups: Collection[group.WorkerGroup], rolling: Collection[ids.GroupId]
) -> tuple[group.WorkerGroup, ...]:
    """The groups to bring over now, with their new shape: the oldest of each pool where no other is on its way."""
    specs = _specs(pools)
    busy = {(each.namespace, each.pool) for each in groups if each.id in rolling}
    chosen: dict[tuple[ids.Namespace, ids.PoolName | None], group.WorkerGroup] = {}
    for each in outdated(pools, groups):
        key = each.namespace, each.pool
        if key not in busy:
            chosen.setdefault(key, dataclasses.replace(each, spec=specs[key]))
    return tuple(chosen.values())


def _specs(
    pools: Iterable[pool.Pool],
) -> Mapping[tuple[ids.Namespace, ids.PoolName | None], resources.WorkerSpec]:
    return {(each.namespace, each.name): each.spec.worker for each in pools if each.deleted_at is None}
