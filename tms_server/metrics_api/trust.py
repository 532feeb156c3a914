"""Keeps what kube-system publishes about callers up to date: one read, then a watch.

Decides nothing; who is told of a change does.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, NoReturn

import structlog

from tms_server import clock as clock_module
from tms_server.metrics_api import front_proxy, kube

log = structlog.get_logger(__name__)
COLLECTION, _, NAME = front_proxy.CONFIG_MAP.rpartition("/")
FIRST_RETRY, LAST_RETRY = dt.timedelta(seconds=1), dt.timedelta(minutes=1)


class Follower:
    """`read` once, then `run` for as long as the server lives."""

    def __init__(self, api: kube.Kube, clock: clock_module.Clock, changed: Callable[[front_proxy.Trust], None]) -> None:
        self._api = api
        self._clock = clock
        self._changed = changed
        self._last: front_proxy.Trust | None = None

    async def read(self) -> str:
        """Takes up what is published now; answers its resourceVersion.

        Unavailable or PermissionDenied when it cannot be read, FailedPrecondition where it says too little.
        """
        found = await self._api.get(front_proxy.CONFIG_MAP)
        self._take(found)
        return str(found["metadata"]["resourceVersion"])

    async def run(self) -> NoReturn:
        """Follows the changes until cancelled; a broken watch begins anew with a read."""
        retry = FIRST_RETRY
        while True:
            try:
                revision = await self.read()
                retry = FIRST_RETRY
                await self._follow(revision)
                # A watch that ends at once must not become a storm.
                await self._clock.sleep_until(self._clock.now() + FIRST_RETRY)
            except Exception as error:  # noqa: BLE001 - callers must be told apart for as long as the server lives
                log.warning("metrics_api.trust_unread", error=repr(error))
                await self._clock.sleep_until(self._clock.now() + retry)
                retry = min(LAST_RETRY, 2 * retry)

    async def _follow(self, revision: str) -> None:
        async for event in self._api.watch(COLLECTION, NAME, revision):
            if event.get("type") not in ("ADDED", "MODIFIED"):
                return
            self._take(event["object"])

    def _take(self, config_map: dict[str, Any]) -> None:
        trust = front_proxy.parse(config_map)
        if trust != self._last:
            self._last = trust
            self._changed(trust)
