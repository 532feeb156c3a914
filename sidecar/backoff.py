"""How long to wait before trying again. The only place of the sidecar that uses chance."""

from __future__ import annotations

import asyncio
import contextlib
import random  # noqa: TID251 - this is the one backoff helper


class Backoff:
    """Delays in seconds that double up to a cap, each jittered down by up to half."""

    def __init__(self, first_s: float, cap_s: float) -> None:
        self._first_s, self._cap_s = first_s, cap_s
        self._tries = 0

    def next_s(self) -> float:
        delay_s = min(self._cap_s, self._first_s * 2.0 ** min(self._tries, 32))
        self._tries += 1
        return delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, protects nothing

    def reset(self) -> None:
        self._tries = 0


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Waits for the event, at most so long; whether it came."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
