"""A clock that moves only when told to."""

from __future__ import annotations

import asyncio
import datetime as dt

START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


class FakeClock:
    """Starts at `START`; `advance` wakes whoever slept until an instant that has come."""

    def __init__(self, now: dt.datetime = START) -> None:
        self._now = now
        self._sleepers: list[tuple[dt.datetime, asyncio.Event]] = []

    def now(self) -> dt.datetime:
        return self._now

    async def sleep_until(self, instant: dt.datetime) -> None:
        if instant <= self._now:
            return
        event = asyncio.Event()
        self._sleepers.append((instant, event))
        await event.wait()

    def advance(self, span: dt.timedelta) -> None:
        """Moves time forward."""
        self._now += span
        due = [event for instant, event in self._sleepers if instant <= self._now]
        self._sleepers = [(instant, event) for instant, event in self._sleepers if instant > self._now]
        for event in due:
            event.set()
