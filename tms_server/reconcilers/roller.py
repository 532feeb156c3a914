"""Brings the workers of changed pools to their new shape, one group after the other, on backends that roll.

Decides with `fleet.rolling` and writes the group's new shape; the fleet reconciler launches it. What it remembers of a
roll is in memory: after a restart it waits for groups that are not whole, as if their roll had just begun.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Mapping

import structlog

from tms_server.fleet import rolling
from tms_server.model import group, ids, pool, resources
from tms_server.placement import index
from tms_server.ports import backend as backend_module
from tms_server.ports import store as store_module
from tms_server.world import fleet_view

log = structlog.get_logger(__name__)
Differs = Callable[[ids.GroupId], bool]


@dataclasses.dataclass(slots=True, kw_only=True)
class Roller:
    """One per server. `capacity` answers what may be booked on a worker of a shape."""

    store: store_module.Store
    capacity: Callable[[resources.WorkerSpec], int]
    _rolls: dict[ids.GroupId, rolling.Roll] = dataclasses.field(default_factory=dict, init=False)

    async def step(
        self,
        pools: tuple[pool.Pool, ...],
        groups: tuple[group.WorkerGroup, ...],
        shapes: Mapping[ids.GroupId, rolling.Shape],
        now: dt.datetime,
    ) -> bool:
        """One step of every roll; answers whether it wrote anything."""
        self._rolls = {
            key: roll
            for key, roll in self._rolls.items()
            if key in {each.id for each in groups} and not rolling.over(roll, shapes.get(key), now)
        }
        outdated = rolling.outdated(pools, groups)
        self._notice(outdated, groups, shapes, now)
        due = rolling.due(pools, groups, self._rolls)
        old = {each.id for each in outdated}
        grown = [each for each in groups if each.id not in old and self._may_grow(each, shapes)]
        if not due and not grown:
            return False
        moved = await self.store.write(lambda unit: self._move(unit, due, grown))
        for group_id in moved:
            shape = shapes.get(group_id)
            self._rolls[group_id] = rolling.Roll(now, shape.replicas if shape is not None else frozenset())
            log.info("group.rolling", group=group_id)
        return bool(moved or grown)

    def next_at(self) -> dt.datetime | None:
        """When a wait is over at the latest."""
        return rolling.ends_at(self._rolls.values())

    def _notice(
        self,
        outdated: Iterable[group.WorkerGroup],
        groups: Iterable[group.WorkerGroup],
        shapes: Mapping[ids.GroupId, rolling.Shape],
        now: dt.datetime,
    ) -> None:
        """A group of the new shape that is not whole is waited for, whoever began it."""
        homes = {(each.namespace, each.pool) for each in outdated}
        old = {each.id for each in outdated}
        for each in groups:
            shape = shapes.get(each.id)
            unknown = each.id not in self._rolls and each.id not in old and (each.namespace, each.pool) in homes
            if unknown and shape is not None and not shape.whole:
                self._rolls[each.id] = rolling.Roll(now, frozenset())

    def _may_grow(self, each: group.WorkerGroup, shapes: Mapping[ids.GroupId, rolling.Shape]) -> bool:
        """Its workers are all of a shape that has more room than may be booked; it was lower while they were not."""
        shape = shapes.get(each.id)
        whole = shape is not None and shape.whole and each.id not in self._rolls
        return whole and each.capacity_bytes < self.capacity(each.spec)

    def _move(
        self, unit: store_module.UnitOfWork, due: Iterable[group.WorkerGroup], grown: Iterable[group.WorkerGroup]
    ) -> list[ids.GroupId]:
        books = index.of(fleet_view.fleet(unit, self.capacity)).books
        moved = []
        for each in due:
            capacity_bytes = min(each.capacity_bytes, self.capacity(each.spec))
            book = books.get(each.id)
            if book is None or book.booked_bytes > capacity_bytes:
                log.warning("group.not_rolled", group=each.id, capacity_bytes=capacity_bytes)
                continue
            unit.put_group(dataclasses.replace(each, capacity_bytes=capacity_bytes), each.generation)
            moved.append(each.id)
        for each in grown:
            larger = dataclasses.replace(each, capacity_bytes=self.capacity(each.spec))
            unit.put_group(larger, each.generation)
        return moved


def shapes(observed: Iterable[backend_module.Observed], differs: Differs) -> Mapping[ids.GroupId, rolling.Shape]:
    """The groups as the backend shows them."""
    return {
        each.group_id: rolling.Shape(
            replicas=frozenset(replica.id for replica in each.replicas),
            whole=len(each.replicas) == each.wanted_replicas
            and all(replica.ready for replica in each.replicas)
            and not differs(each.group_id),
        )
        for each in observed
    }
