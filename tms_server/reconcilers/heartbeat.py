"""Says that the server is alive, and stores what may be stored coarsely: use of leases, reports of sidecars.

One write each time. What the store could not hear for a while is credited to every lease, so that nobody's time runs
while it cannot be renewed.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping

import structlog

from tms_server import clock as clock_module
from tms_server.leases import expiry
from tms_server.model import errors, group, ids, lease
from tms_server.ports import store as store_module
from tms_server.world import live

log = structlog.get_logger(__name__)
ACTOR = "system"


async def credit_outage(store: store_module.Store, now: dt.datetime) -> dt.timedelta:
    """Adds the time since a server was last alive to every unended lease; answers it. Comes before any expiry."""
    return await store.write(lambda unit: _credit(unit, unit.installation().alive_at, now))


class Heartbeat:
    """One pass is one write."""

    def __init__(self, store: store_module.Store, clock: clock_module.Clock, heard: live.Live) -> None:
        self._store = store
        self._clock = clock
        self._live = heard
        self._alive_at = clock.now()
        self._stored: dict[ids.WorkerId, dt.datetime] = {}
        self._told: dict[ids.LeaseId, dt.datetime] = {}

    async def __call__(self) -> None:
        now = self._clock.now()
        silent_since = self._live.store_silent_since
        uses = dict(self._live.uses)
        known = self._live.own()
        reports = [each for each in known if self._stored.get(each.worker) != each.received_at]
        try:
            told = await self._store.write(lambda unit: self._beat(unit, now, silent_since, uses, reports))
        except errors.Retryable:
            self._live.store_silent_since = silent_since or self._alive_at
            raise
        self._alive_at, self._live.store_silent_since = now, None
        self._stored = {each.worker: each.received_at for each in known}
        self._forget(uses)
        self._told = {key: at for key, at in {**self._told, **told}.items() if key in uses or key in self._live.uses}

    def _beat(
        self,
        unit: store_module.UnitOfWork,
        now: dt.datetime,
        silent_since: dt.datetime | None,
        uses: Mapping[ids.LeaseId, dt.datetime],
        reports: list[group.GroupReport],
    ) -> dict[ids.LeaseId, dt.datetime]:
        if silent_since is not None:
            # Another server may have credited some of it already.
            _credit(unit, max(silent_since, unit.installation().alive_at), now)
        unit.touch(now)
        if reports:
            unit.put_reports(reports)
        return {key: now for key, last in uses.items() if self._renew(unit, key, last, now)}

    def _renew(self, unit: store_module.UnitOfWork, lease_id: ids.LeaseId, last: dt.datetime, now: dt.datetime) -> bool:
        """Stores a use; answers whether the history got a line, which it does once in half a window at most."""
        stored = unit.get_lease(lease_id)
        if stored is None or not stored.state.living or (stored.last_activity_at or last) > last:
            return False
        if stored.last_activity_at == last:
            return False
        used = dataclasses.replace(stored, last_activity_at=last)
        if not self._worth_telling(stored, used, now):
            unit.renew_lease(lease_id, None, last)
            return False
        event = store_module.NewEvent(type="Renewed", message=f"used {last.isoformat()}", actor=ACTOR, at=now)
        unit.save_lease(used, event)
        return True

    def _worth_telling(self, stored: lease.Lease, used: lease.Lease, now: dt.datetime) -> bool:
        told, half = self._told.get(stored.id), stored.spec.times.activity_window / 2
        return expiry.deadline(used) != expiry.deadline(stored) and (told is None or now - told >= half)

    def _forget(self, uses: Mapping[ids.LeaseId, dt.datetime]) -> None:
        for lease_id, last in uses.items():
            if self._live.uses.get(lease_id) == last:
                del self._live.uses[lease_id]


def _credit(unit: store_module.UnitOfWork, since: dt.datetime, now: dt.datetime) -> dt.timedelta:
    outage = max(dt.timedelta(0), now - since)
    if outage:
        for each in unit.unended_leases():
            unit.save_lease(dataclasses.replace(each, credit=each.credit + outage))
        log.info("outage.credited", outage_s=outage.total_seconds())
    unit.touch(now)
    return outage
