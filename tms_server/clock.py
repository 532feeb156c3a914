"""The only place where the control plane reads time or waits for it."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import Protocol


class Clock(Protocol):
    """Time as the control plane sees it."""

    def now(self) -> dt.datetime:
        """UTC, timezone-aware; never goes back."""
        ...

    async def sleep_until(self, instant: dt.datetime) -> None:
        """Returns once `now()` has reached the instant."""
        ...


class SystemClock:
    """UTC as it was when the process started, carried on by a clock that nobody sets.

    A step of the machine's wall clock must neither end leases early nor put every timer to sleep, so only a restart takes
    it over. Time in suspension counts.
    """

    def __init__(self) -> None:
        wall = dt.datetime.now(dt.UTC)  # noqa: TID251 - this is where time enters
        self._start = wall - dt.timedelta(seconds=_steady_s())

    def now(self) -> dt.datetime:
        return self._start + dt.timedelta(seconds=_steady_s())

    async def sleep_until(self, instant: dt.datetime) -> None:
        while (left_s := (instant - self.now()).total_seconds()) > 0:  # noqa: ASYNC110 - time gives no event
            await asyncio.sleep(left_s)  # noqa: TID251 - this is where waiting happens


def _steady_s() -> float:
    # macOS has no CLOCK_BOOTTIME; its monotonic clock is the nearest.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
