"""Leads clients to the workers that can answer them, on a backend that leads clients.

One pass states all routes anew; whatever was there before and is not stated goes. It decides nothing but by the workers'
own words, and loads or unloads nothing.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable

import structlog

from tms_server import clock as clock_module
from tms_server.ports import backend as backend_module
from tms_server.ports import store as store_module
from tms_server.world import live, routing, sight

log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True, kw_only=True)
class Router:
    """One pass; `done` is called when it led clients elsewhere than the pass before."""

    store: store_module.Store
    backend: backend_module.Backend
    clock: clock_module.Clock
    live: live.Live
    lost_after: dt.timedelta
    done: Callable[[], None]
    _applied: tuple[backend_module.Route, ...] | None = dataclasses.field(default=None, init=False)

    async def __call__(self) -> None:
        if not self.backend.routes:
            return
        # Before the backend showed its workers once, those that never spoke to this server would be passed over.
        self.live.observe(await self.backend.observe())
        seen = sight.take(self.live, self.backend, self.lost_after, self.clock.now())
        routes = routing.routes(await self.store.read(routing.load), seen)
        untold = dict(await self.backend.route(routes))
        if untold != self.live.untold:
            self.live.untold = untold
            self.live.changed.notify()
            log.info("router.untold", owners=sorted(untold))
        if routes != self._applied:
            self._applied = routes
            self.done()
