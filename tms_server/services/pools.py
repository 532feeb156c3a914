"""Pools: create, get, list, change, delete. Deleting marks; the pool is gone when its last worker is.

A change of the workers' shape is stored here; the workers are brought to it elsewhere, one after the other.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
from collections.abc import Callable

from tms_server.leases import validate
from tms_server.model import caller as caller_module
from tms_server.model import errors, ids, lease, pool, resources, sizes
from tms_server.placement import index
from tms_server.ports import store
from tms_server.services import finding, images, parts
from tms_server.world import endings, fleet_view


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """A pool with what lives in it."""

    pool: pool.Pool
    workers: int
    leases: int
    booked_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """The use cases of pools."""

    parts: parts.Parts

    async def create(
        self, caller: caller_module.Caller, namespace: ids.Namespace, name: ids.PoolName, spec: pool.PoolSpec
    ) -> PoolView:
        """Stores a pool; the same definition again answers the pool."""
        del caller  # every caller may, while there are no rights
        validate.name("namespace", namespace)
        validate.name("name", name)
        validate.pool_spec(spec)
        parts.refuse_worker(self.parts.backend, "spec.worker", spec.worker)
        now = self.parts.clock.now()

        def work(unit: store.UnitOfWork) -> PoolView:
            images.check(unit, self.parts.images, "spec.worker", spec.worker)
            return _create(unit, namespace, name, spec, now)

        made = await self.parts.store.write(work)
        self.parts.changed.notify()
        return made

    async def get(self, caller: caller_module.Caller, namespace: ids.Namespace, name: ids.PoolName) -> PoolView:
        """A pool by name."""
        del caller
        return await self.parts.store.read(lambda reader: _views(reader, [finding.a_pool(reader, namespace, name)])[0])

    async def list(self, caller: caller_module.Caller, namespace: ids.Namespace) -> tuple[PoolView, ...]:
        """All pools of a namespace."""
        del caller
        validate.name("namespace", namespace)
        return await self.parts.store.read(
            lambda reader: _views(reader, [each for each in reader.pools(namespace) if each.deleted_at is None])
        )

    async def update(
        self, caller: caller_module.Caller, namespace: ids.Namespace, name: ids.PoolName, spec: pool.PoolSpec
    ) -> PoolView:
        """Replaces the definition; Unimplemented where the workers' shape changes and the backend cannot roll them.

        FailedPrecondition where a worker has more booked than the new shape can hold.
        """
        del caller
        validate.pool_spec(spec)
        parts.refuse_worker(self.parts.backend, "spec.worker", spec.worker)
        made = await self.parts.store.write(lambda unit: self._update(unit, namespace, name, spec))
        self.parts.changed.notify()
        return made

    def _update(
        self, unit: store.UnitOfWork, namespace: ids.Namespace, name: ids.PoolName, spec: pool.PoolSpec
    ) -> PoolView:
        found = finding.a_pool(unit, namespace, name)
        changed = dataclasses.replace(found, spec=spec)
        if spec.worker != found.spec.worker:
            images.check(unit, self.parts.images, "spec.worker", spec.worker)
            if not self.parts.backend.scales:
                raise errors.Unimplemented(
                    "spec.worker: this server does not change the shape of running workers; create another pool"
                )
            bound_bookings(unit, changed, self.parts.backend.capacity_bytes)
        if changed != found:
            unit.put_pool(changed)
        return _views(unit, [changed])[0]

    async def delete(
        self, caller: caller_module.Caller, namespace: ids.Namespace, name: ids.PoolName, *, revoke_leases: bool
    ) -> None:
        """Marks a pool as deleted; its leases are revoked if asked, else FailedPrecondition while there are any.

        FailedPrecondition for a pool that the settings keep.
        """
        now = self.parts.clock.now()
        if (namespace, name) in self.parts.declared:
            raise errors.FailedPrecondition(f"pool {name} is declared in the server's settings; take it out there")

        def work(unit: store.UnitOfWork) -> None:
            found = finding.a_pool(unit, namespace, name)
            living = [each for each in _leases(unit, found) if each.state.living]
            if living and not revoke_leases:
                raise errors.FailedPrecondition(
                    f"{len(living)} lease(s) live in pool {name}, {living[0].id} among them: end them, or revoke them"
                )
            endings.end_all(unit, [(each, _revoked(caller, name, now)) for each in living])
            unit.put_pool(dataclasses.replace(found, deleted_at=now))

        await self.parts.store.write(work)
        self.parts.changed.notify()


def bound_bookings(unit: store.UnitOfWork, changed: pool.Pool, capacity: Callable[[resources.WorkerSpec], int]) -> None:
    """From now on nothing is booked on the pool's workers that its new shape could not hold.

    FailedPrecondition where a worker has more booked already.
    """
    capacity_bytes = capacity(changed.spec.worker)
    books = index.of(fleet_view.fleet(unit, capacity)).books
    for each in unit.groups():
        if (each.namespace, each.pool) != (changed.namespace, changed.name):
            continue
        if books[each.id].booked_bytes > capacity_bytes:
            raise errors.FailedPrecondition(
                f"spec.worker.resources.memory_bytes: worker {each.id} has {sizes.text(books[each.id].booked_bytes)}"
                f" booked, and such a worker would have {sizes.text(capacity_bytes)}; give more, or end leases first"
            )
        if each.capacity_bytes > capacity_bytes:
            unit.put_group(dataclasses.replace(each, capacity_bytes=capacity_bytes), each.generation)


def _create(
    unit: store.UnitOfWork, namespace: ids.Namespace, name: ids.PoolName, spec: pool.PoolSpec, now: dt.datetime
) -> PoolView:
    stored = unit.get_pool(namespace, name)
    if stored is None:
        stored = pool.Pool(namespace=namespace, name=name, spec=spec, created_at=now)
        unit.put_pool(stored)
    elif stored.deleted_at is not None:
        raise errors.FailedPrecondition(f"pool {name} is being deleted; create it again once its workers are gone")
    elif stored.spec != spec:
        raise errors.AlreadyExists(f"name: pool {name!r} exists with another definition; choose a new name")
    return _views(unit, [stored])[0]


def _views(reader: store.Reader, shown: list[pool.Pool]) -> tuple[PoolView, ...]:
    groups = {each.id: (each.namespace, each.pool) for each in reader.groups()}
    workers = collections.Counter(groups.values())
    booked = collections.Counter[tuple[ids.Namespace, ids.PoolName | None]]()
    for assignment in reader.assignments():
        if assignment.group_id in groups:
            booked[groups[assignment.group_id]] += assignment.booked_bytes
    unended = reader.unended_leases()
    leases = collections.Counter((each.namespace, _pool_of(each)) for each in unended)
    return tuple(
        PoolView(
            pool=each,
            workers=workers[each.namespace, each.name],
            leases=leases[each.namespace, each.name],
            booked_bytes=booked[each.namespace, each.name],
        )
        for each in shown
    )


def _leases(reader: store.Reader, of: pool.Pool) -> list[lease.Lease]:
    return [each for each in reader.unended_leases() if (each.namespace, _pool_of(each)) == (of.namespace, of.name)]


def _pool_of(each: lease.Lease) -> ids.PoolName | None:
    placement = each.spec.placement
    return placement.pool if isinstance(placement, lease.InPool) else None


def _revoked(caller: caller_module.Caller, name: ids.PoolName, now: dt.datetime) -> lease.LeaseEnd:
    return lease.LeaseEnd(
        state=lease.LeaseState.REVOKED,
        reason="PoolDeleted",
        message=f"pool {name} was deleted by {caller.name}",
        actor=caller.name,
        at=now,
    )
