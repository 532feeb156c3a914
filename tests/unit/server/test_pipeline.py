"""Several messages of a stream in work at once: order, bound, ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tms_server.api import pipeline


async def _numbers(count: int, taken: list[int]) -> AsyncIterator[int]:
    for number in range(count):
        taken.append(number)
        yield number


async def test_answers_keep_the_order_however_long_each_takes() -> None:
    done = [asyncio.Event() for _ in range(3)]

    async def answer(number: int) -> int:
        # The first waits for the second, the second for the third: only together do they end.
        if number < 2:
            await done[number + 1].wait()
        done[number].set()
        return number * 10

    async with asyncio.timeout(30):
        assert [each async for each in pipeline.in_order(_numbers(3, []), answer, 3)] == [0, 10, 20]


async def test_no_more_are_taken_than_are_answered_and_read() -> None:
    taken: list[int] = []

    async def answer(number: int) -> int:
        return number

    async with contextlib.aclosing(pipeline.in_order(_numbers(100, taken), answer, 4)) as answers:
        assert await anext(answers) == 0
        assert len(taken) <= 6


async def test_a_failure_comes_after_the_answers_before_it_and_ends_the_rest() -> None:
    ended: list[int] = []

    async def answer(number: int) -> int:
        if number == 1:
            raise ValueError(number)
        if number == 2:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(number)
        return number

    seen: list[int] = []

    async def read() -> None:
        async for each in pipeline.in_order(_numbers(3, []), answer, 3):
            seen.append(each)  # noqa: PERF401 - what came before the failure counts

    with pytest.raises(ValueError, match="1"):
        await read()
    assert (seen, ended) == ([0], [2])


async def test_a_failure_of_the_stream_itself_comes_last() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    async def answer(number: int) -> int:
        return number

    seen: list[int] = []

    async def read() -> None:
        async for each in pipeline.in_order(broken(), answer, 3):
            seen.append(each)  # noqa: PERF401 - what came before the failure counts

    with pytest.raises(ValueError, match="broken"):
        await read()
    assert seen == [1]
