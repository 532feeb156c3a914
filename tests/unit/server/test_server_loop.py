from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator

import pytest

from tms_server.model import errors
from tms_server.observability import metrics as metrics_module
from tms_server.reconcilers import loop
from tms_server.testing import clock as fake_clock

QUICK = loop.Timing(interval=dt.timedelta(seconds=5), rest_s=0.001, first_backoff_s=0.001, longest_backoff_s=0.002)


class Work:
    """Counts passes; raises what is put in `failures`, answers `due`."""

    def __init__(self) -> None:
        self.passes = 0
        self.failures: list[Exception] = []
        self.due: dt.datetime | None = None
        self.passed = asyncio.Condition()

    async def __call__(self) -> dt.datetime | None:
        self.passes += 1
        async with self.passed:
            self.passed.notify_all()
        if self.failures:
            raise self.failures.pop(0)
        return self.due

    async def reach(self, passes: int) -> None:
        async with asyncio.timeout(30), self.passed:
            await self.passed.wait_for(lambda: self.passes >= passes)


@contextlib.asynccontextmanager
async def looping(work: Work) -> AsyncIterator[tuple[loop.Loop, fake_clock.FakeClock]]:
    clock = fake_clock.FakeClock()
    made = loop.Loop("work", work, clock, metrics_module.Metrics(), QUICK)
    task = asyncio.create_task(made.run())
    try:
        yield made, clock
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def settle(clock: fake_clock.FakeClock, times: int = 1) -> None:
    """Returns once the loop has gone to sleep on the clock so many times; who was woken early counts too."""
    async with asyncio.timeout(30):
        while len(clock._sleepers) < times:
            await asyncio.to_thread(int)


async def test_a_wake_brings_a_pass_and_the_timer_another() -> None:
    work = Work()
    async with looping(work) as (made, clock):
        await settle(clock)
        made.wake()
        await work.reach(2)
        await settle(clock, times=2)
        clock.advance(dt.timedelta(seconds=5))
        await work.reach(3)


async def test_a_pass_that_is_due_earlier_than_the_timer_comes_then() -> None:
    work = Work()
    work.due = fake_clock.START + dt.timedelta(seconds=1)
    async with looping(work) as (_, clock):
        await settle(clock)
        clock.advance(dt.timedelta(seconds=1))
        await work.reach(2)


@pytest.mark.parametrize("failure", [RuntimeError("bug"), errors.Unavailable("silent"), errors.Conflict("late")])
async def test_a_pass_that_raises_is_tried_again_without_a_wake(failure: Exception) -> None:
    work = Work()
    work.failures = [failure] * 3
    async with looping(work) as (made, clock):
        await work.reach(4)
        await settle(clock)
        assert made.status.failures == (0 if isinstance(failure, errors.Conflict) else 3)
        assert made.status.failures_in_a_row == 0
        assert ("bug" in made.status.last_error) == isinstance(failure, RuntimeError)
