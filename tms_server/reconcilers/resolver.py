"""Goes on looking up the models of leases whose repository was silent when they were created.

A definite no ends the lease; silence is written on it and asked again. Nothing is looked up inside a transaction.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections.abc import Callable

from tms_server import clock as clock_module
from tms_server.leases import lifecycle
from tms_server.model import errors, lease, source
from tms_server.ports import resolver as resolver_module
from tms_server.ports import store as store_module
from tms_server.world import endings, resolving

AT_ONCE = 8
RETRY = dt.timedelta(seconds=5)
BOUND_S = 30.0
ACTOR = "system"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resolver:
    """One pass asks once for each unresolved lease, `AT_ONCE` at a time."""

    store: store_module.Store
    clock: clock_module.Clock
    resolver: resolver_module.Resolver

    async def __call__(self) -> dt.datetime | None:
        unresolved = [each for each in await self.store.read(lambda reader: reader.unended_leases()) if _needs(each)]
        slots = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for each in unresolved:
                tasks.create_task(self._one(each, slots))
        return self.clock.now() + RETRY if unresolved else None

    async def _one(self, waiting: lease.Lease, slots: asyncio.Semaphore) -> None:
        async with slots:
            answer = await self._ask(waiting)
        now = self.clock.now()
        await self.store.write(lambda unit: _apply(unit, waiting, lambda stored: answer(unit, stored, now)))

    async def _ask(self, waiting: lease.Lease) -> Callable[[store_module.UnitOfWork, lease.Lease, dt.datetime], None]:
        try:
            sources = await resolving.resolve(self.resolver, waiting.spec.models, BOUND_S)
        except resolving.DEFINITE as error:
            refusal = error
            return lambda unit, stored, now: _refuse(unit, stored, refusal, now)
        except errors.Retryable as error:
            message = str(error)
            return lambda unit, stored, now: _silent(unit, stored, message, now)
        return lambda unit, stored, now: _resolve(unit, stored, sources, now)


def _needs(each: lease.Lease) -> bool:
    return each.state is lease.LeaseState.PENDING and not each.sources


def _apply(unit: store_module.UnitOfWork, asked: lease.Lease, write: Callable[[lease.Lease], None]) -> None:
    stored = unit.get_lease(asked.id)
    if stored is not None and _needs(stored):
        write(stored)


def _resolve(
    unit: store_module.UnitOfWork, stored: lease.Lease, sources: tuple[source.ModelSource, ...], now: dt.datetime
) -> None:
    event = store_module.NewEvent(type="Resolved", message="its models were looked up", actor=ACTOR, at=now)
    unit.save_lease(lifecycle.resolve(stored, sources, now), event)


def _silent(unit: store_module.UnitOfWork, stored: lease.Lease, message: str, now: dt.datetime) -> None:
    changed = lifecycle.unresolved(stored, "RepositorySilent", message, now)
    if changed is not stored:
        unit.save_lease(changed)


def _refuse(unit: store_module.UnitOfWork, stored: lease.Lease, error: Exception, now: dt.datetime) -> None:
    reason = "NoAccess" if isinstance(error, errors.PermissionDenied) else "ModelNotFound"
    why = lease.LeaseEnd(state=lease.LeaseState.FAILED, reason=reason, message=str(error), actor=ACTOR, at=now)
    endings.end(unit, stored, why)
