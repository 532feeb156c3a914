"""Runs one pass again and again: when woken, and on a timer.

A wake carries nothing; each pass looks at the world anew, so a wake that comes twice or late does no harm, and the timer
is the only retry. A pass that raises is recorded and the loop lives on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import time
from collections.abc import Awaitable, Callable

import structlog

from tms_server import clock as clock_module
from tms_server.model import errors
from tms_server.observability import metrics as metrics_module

log = structlog.get_logger(__name__)

Pass = Callable[[], Awaitable[dt.datetime | None]]
"""Does one pass; answers when the next one is due by the clock, None when only the timer says so."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """`interval` is the longest time without a pass (by the clock).

    The others are on the machine's own monotonic clock: at least `rest_s` seconds between passes, so that many wakes
    become one pass; once `burst_s` seconds of processor time were spent during passes, `rest_factor` times what is spent
    beyond, so that one lease goes its way without a pause while a great fleet under load leaves time for calls, and
    waiting for others costs nothing; and the pauses after failures.
    """

    interval: dt.timedelta = dt.timedelta(seconds=5)
    rest_s: float = 0.005
    burst_s: float = 0.1
    rest_factor: float = 19.0
    first_backoff_s: float = 0.1
    longest_backoff_s: float = 30.0


@dataclasses.dataclass(slots=True)
class Status:
    """What became of the passes so far."""

    passes: int = 0
    failures: int = 0
    failures_in_a_row: int = 0
    last_error: str = ""


class Loop:
    """Owns one pass. `run` ends only by cancellation."""

    def __init__(
        self,
        name: str,
        work: Pass,
        clock: clock_module.Clock,
        metrics: metrics_module.Metrics,
        timing: Timing | None = None,
    ) -> None:
        self.name = name
        self.status = Status()
        self._work = work
        self._clock = clock
        self._metrics = metrics
        self._timing = timing or Timing()
        self._woken = asyncio.Event()
        self._spent_s, self._counted_at = 0.0, 0.0

    def wake(self) -> None:
        """Asks for a pass soon."""
        self._woken.set()

    async def run(self) -> None:
        """Passes until cancelled."""
        while True:
            self._woken.clear()
            used_before_s, began_at = time.process_time(), self._clock.now()
            due = await self._pass()
            await _rest(self._pause_s(time.process_time() - used_before_s))
            await self._until(min(filter(None, (due, began_at + self._timing.interval))))

    async def _pass(self) -> dt.datetime | None:
        started = time.monotonic()
        try:
            due = await self._work()
        except errors.Conflict as conflict:
            log.debug("pass.conflict", loop=self.name, error=str(conflict))
            self.wake()
            due = None
        except Exception as error:  # noqa: BLE001 - the loop must outlive whatever a pass raises
            self._record(error)
            due = None
        else:
            self.status.failures_in_a_row = 0
        self.status.passes += 1
        self._metrics.pass_seconds.labels(self.name).observe(time.monotonic() - started)
        return due

    def _record(self, error: Exception) -> None:
        self.status.failures += 1
        self.status.failures_in_a_row += 1
        self.status.last_error = f"{type(error).__name__}: {error}"
        self._metrics.pass_failures.labels(self.name).inc()
        expected = isinstance(error, errors.Retryable)
        log.warning("pass.failed", loop=self.name, error=self.status.last_error, exc_info=None if expected else error)
        self.wake()

    def _pause_s(self, pass_s: float) -> float:
        if self.status.failures_in_a_row == 0:
            return max(self._timing.rest_s, self._timing.rest_factor * self._beyond_burst_s(pass_s))
        doublings = min(self.status.failures_in_a_row - 1, 16)
        return min(self._timing.longest_backoff_s, self._timing.first_backoff_s * 2.0**doublings)

    def _beyond_burst_s(self, pass_s: float) -> float:
        """What was spent too much of late; it is forgiven as time goes by."""
        now = time.monotonic()
        forgiven_s = (now - self._counted_at) / self._timing.rest_factor
        self._spent_s, self._counted_at = max(0.0, self._spent_s - forgiven_s) + pass_s, now
        return self._spent_s - self._timing.burst_s

    async def _until(self, instant: dt.datetime) -> None:
        timer = asyncio.ensure_future(self._clock.sleep_until(instant))
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait((timer, woken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            woken.cancel()


async def _rest(span_s: float) -> None:
    over = asyncio.Event()
    handle = asyncio.get_running_loop().call_later(span_s, over.set)
    try:
        await over.wait()
    finally:
        handle.cancel()
