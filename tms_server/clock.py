"""The only place where the control plane reads time or waits for it."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Protocol


class Clock(Protocol):
    """Time as the control plane sees it."""

    def now(self) -> dt.datetime:
        """UTC, timezone-aware."""
        ...

    async def sleep_until(self, instant: dt.datetime) -> None:
        """Returns once `now()` has reached the instant."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC)  # noqa: TID251 - this is where time enters

    async def sleep_until(self, instant: dt.datetime) -> None:
        while (left_s := (instant - self.now()).total_seconds()) > 0:  # noqa: ASYNC110 - time gives no event
            await asyncio.sleep(left_s)  # noqa: TID251 - this is where waiting happens
