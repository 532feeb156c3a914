"""Removes what has no cause any more: bookings of workers that are gone, addresses without owner, deleted pools, old ends.

Takes away only what nobody can want again; the order of its reads makes that sure.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

import structlog

from tms_server import clock as clock_module
from tms_server.fleet import desired
from tms_server.model import group, ids, pool
from tms_server.ports import backend as backend_module
from tms_server.ports import store as store_module
from tms_server.world import endings, live

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Janitor:
    """One pass removes what has no cause now."""

    store: store_module.Store
    backend: backend_module.Backend
    clock: clock_module.Clock
    live: live.Live

    async def __call__(self) -> None:
        now = self.clock.now()
        draining = await self.store.read(lambda reader: [each for each in reader.assignments() if each.draining])
        # Observed after the read: a worker launched since is told a generation that no longer holds these models.
        running = {each.group_id for each in await self.backend.observe()}
        gone = [each for each in draining if each.group_id not in running]
        if gone:
            await self.store.write(lambda unit: endings.confirm(unit, _still(unit, gone), now))
            log.info("janitor.confirmed", assignments=len(gone))
        if await self.store.read(lambda reader: bool(_orphans(reader) or _dead_pools(reader))):
            await self.store.write(_sweep)
        await self._forget_live()

    async def _forget_live(self) -> None:
        groups, leases = await self.store.read(
            lambda reader: (
                {each.id for each in reader.groups()},
                {each.id for each in reader.unended_leases()},
            )
        )
        vanished = self.live.keep_only(groups, leases)
        gone = [each for each in vanished if each.group_id in groups and each.replica != ids.ONLY_REPLICA]
        if gone:
            await self.store.write(lambda unit: _forget_reports(unit, gone))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forgetter:
    """One pass forgets the leases that ended `retention` ago."""

    store: store_module.Store
    clock: clock_module.Clock
    retention: dt.timedelta

    async def __call__(self) -> None:
        before = self.clock.now() - self.retention
        if forgotten := await self.store.write(lambda unit: unit.forget_before(before)):
            log.info("janitor.forgot", leases=forgotten)


def _forget_reports(unit: store_module.UnitOfWork, gone: list[ids.WorkerId]) -> None:
    for worker in gone:
        unit.delete_report(worker)


def _still(unit: store_module.Reader, gone: list[group.Assignment]) -> list[group.Assignment]:
    stored = set(unit.assignments())
    return [each for each in gone if each in stored]


def _sweep(unit: store_module.UnitOfWork) -> None:
    for owner in _orphans(unit):
        unit.delete_endpoint(owner)
    for dead in _dead_pools(unit):
        unit.delete_pool(dead.namespace, dead.name)


def _orphans(reader: store_module.Reader) -> list[str]:
    owners = {desired.group_owner(each.id) for each in reader.groups()}
    owners |= {desired.lease_owner(each.id) for each in reader.unended_leases()}
    owners |= {desired.name_owner(each.namespace, each.name) for each in reader.names()}
    return sorted(set(reader.endpoints()) - owners)


def _dead_pools(reader: store_module.Reader) -> list[pool.Pool]:
    deleted = [each for each in reader.pools() if each.deleted_at is not None]
    if not deleted:
        return []
    used: set[tuple[ids.Namespace, ids.PoolName | None]] = {(each.namespace, each.pool) for each in reader.groups()}
    return [each for each in deleted if (each.namespace, each.name) not in used]
