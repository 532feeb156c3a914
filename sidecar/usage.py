"""What the worker tells of its load, read whenever somebody needs it and often enough to see that it gets on.

Decides in which order the worker is asked: what runs before what has ended, so that no request falls between the two.
Reasons with `activity` and `wedge`; must never conclude from what was not said.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection

import structlog

from sidecar import access, activity, clock, errors, runtime, scrape, values, wedge

log = structlog.get_logger()

_SILENT_S = 15.0
_LEAST_PERIOD_S, _MOST_PERIOD_S = 0.5, 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at the worker, begun at `at_ms`; `statistics` None where it did not answer, `refused` nothing listened."""

    at_ms: int
    page: scrape.Page = scrape.NOTHING
    statistics: runtime.Statistics | None = None
    refused: bool = False

    @property
    def in_flight(self) -> int:
        return sum(self.page.in_flight.values())

    @property
    def ended(self) -> int:
        """Requests that have ended since the models' loads."""
        return sum(each.request_count for each in self.statistics.models.values()) if self.statistics else 0


class Usage:
    """One worker's readings. All methods run on one event loop."""

    def __init__(
        self,
        server: runtime.Runtime,
        worker: values.Endpoint,
        wedged_after_s: float,
        shown: access.Access = access.NOTHING,
    ) -> None:
        self.activities: dict[str, activity.Activity] = {}
        self._server = server
        self._worker = worker
        self._wedged_after_s = wedged_after_s
        self._headers = shown.headers
        self._watched = wedge.Watched()
        self._reading = asyncio.Lock()

    @property
    def period_s(self) -> float:
        """How often to read at least, so that a standstill is seen in time."""
        return min(max(self._wedged_after_s / 10, _LEAST_PERIOD_S), _MOST_PERIOD_S)

    async def read(self, at_ms: int) -> Reading:
        """Asks the worker; bounded. Moves on what is known of its progress. `at_ms` is not after this moment."""
        async with self._reading:
            page = await scrape.scrape(self._worker.host, self._worker.metrics_port, self._headers)
            try:
                statistics = await self._server.statistics()
            except errors.ServerGone as error:
                log.warning("statistics.unavailable", error=str(error))
                return Reading(at_ms=at_ms, refused=error.refused)
            reading = Reading(at_ms=at_ms, page=page, statistics=statistics)
            progress = frozenset(statistics.models.items())
            self._watched = wedge.read(self._watched, wedge.Reading(reading.in_flight, progress), _now_s())
            return reading

    def absorb(self, reading: Reading, ready: Collection[str]) -> bool:
        """Moves the activities of the ready models on; whether the use of each is known."""
        if reading.statistics is None:
            return False
        told = reading.statistics.models
        for name in ready:
            if name in told:
                self.activities[name] = activity.advance(self.activities.get(name), told[name], reading.at_ms)
        return all(name in told for name in ready)

    def loaded(self, name: str) -> None:
        self.activities.setdefault(name, activity.Activity())

    def lost(self, name: str) -> None:
        """A model went without a last reading."""
        self.activities[name] = activity.interrupted(self.activities.get(name), clock.now_ms())

    def unloaded(self, name: str) -> None:
        self.activities.pop(name, None)

    def answered(self) -> None:
        self._watched = wedge.answered(self._watched, _now_s())

    def restarted(self) -> None:
        self._watched = wedge.restarted()

    def trouble(self) -> wedge.Trouble | None:
        return wedge.trouble(self._watched, _now_s(), self._wedged_after_s, _SILENT_S)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
