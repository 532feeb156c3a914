"""Works on several messages of a stream at once; the answers keep the order of the messages.

Bounded: no more than so many are in work or wait for the reader of the answers. It knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


async def in_order(
    asked: AsyncIterator[Q], answer: Callable[[Q], Awaitable[A]], at_once: int
) -> AsyncGenerator[A, None]:
    """Answers in the order of asking. What `asked` or `answer` raises comes after the answers before it.

    Close it (``contextlib.aclosing``) if it is not read to its end: nothing goes on afterwards.
    """
    room = asyncio.Semaphore(at_once)
    running: asyncio.Queue[asyncio.Future[A] | None] = asyncio.Queue()
    reader = asyncio.ensure_future(_read(asked, answer, room, running))
    current: asyncio.Future[A] | None = None
    try:
        while (current := await running.get()) is not None:
            yield await current
            room.release()
        await reader
    finally:
        await _stop(reader, current, running)


async def _read(
    asked: AsyncIterator[Q],
    answer: Callable[[Q], Awaitable[A]],
    room: asyncio.Semaphore,
    running: asyncio.Queue[asyncio.Future[A] | None],
) -> None:
    try:
        async for request in asked:
            await room.acquire()
            running.put_nowait(asyncio.ensure_future(answer(request)))
    finally:
        running.put_nowait(None)


async def _stop(
    reader: asyncio.Future[None],
    current: asyncio.Future[A] | None,
    running: asyncio.Queue[asyncio.Future[A] | None],
) -> None:
    left: list[asyncio.Future[A] | asyncio.Future[None]] = [reader]
    if current is not None:
        left.append(current)
    reader.cancel()
    while not running.empty():
        if (waiting := running.get_nowait()) is not None:
            left.append(waiting)
    for each in left:
        each.cancel()
    await asyncio.gather(*left, return_exceptions=True)
