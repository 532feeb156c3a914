"""Look-ups that are shared: by whom, and how fresh they are."""

from __future__ import annotations

import asyncio

import pytest

from tms_server.repositories import sharing


class Slow:
    """Answers with the number of the look-up, when told to go on."""

    def __init__(self) -> None:
        self.begun = 0
        self._changed = asyncio.Condition()
        self.go_on = asyncio.Semaphore(0)
        self.failure: Exception | None = None

    async def look_up(self, _key: str) -> int:
        async with self._changed:
            self.begun += 1
            mine = self.begun
            self._changed.notify_all()
        await self.go_on.acquire()
        if self.failure is not None:
            raise self.failure
        return mine

    async def until_begun(self, count: int) -> None:
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: self.begun >= count)


async def test_who_comes_while_one_runs_shares_the_next() -> None:
    slow = Slow()
    shared = sharing.Shared(slow.look_up)
    first = asyncio.ensure_future(shared.of("a"))
    await slow.until_begun(1)
    later = [asyncio.ensure_future(shared.of("a")) for _ in range(3)]
    other = asyncio.ensure_future(shared.of("b"))
    await slow.until_begun(2)
    for _ in range(3):
        slow.go_on.release()
    assert (await first, await other, await asyncio.gather(*later)) == (1, 2, [3, 3, 3])


async def test_one_that_gives_up_takes_the_answer_from_nobody() -> None:
    slow = Slow()
    shared = sharing.Shared(slow.look_up)
    hasty, patient = asyncio.ensure_future(shared.of("a")), asyncio.ensure_future(shared.of("a"))
    await slow.until_begun(1)
    hasty.cancel()
    slow.go_on.release()
    assert await patient == 1
    assert (await asyncio.gather(hasty, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_a_failure_is_shared_and_the_next_question_asks_anew() -> None:
    slow = Slow()
    slow.failure = ValueError("no")
    shared = sharing.Shared(slow.look_up)
    slow.go_on.release()
    both = await asyncio.gather(shared.of("a"), shared.of("a"), return_exceptions=True)
    assert [type(each) for each in both] == [ValueError, ValueError]
    slow.failure = None
    slow.go_on.release()
    assert await shared.of("a") == 2
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await shared.of("a")
    slow.go_on.release()
