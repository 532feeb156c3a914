"""Calls of many requests and many answers.

Requests that are not taken are not asked for, answers that are not read are not made: the handler waits in either case.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
from google.protobuf import message as protobuf

from gpu_worker.engine import border
from gpu_worker.grpc import calls
from gpu_worker.grpc.native import assembling, exchange, heads, statuses
from gpu_worker.http2 import streams
from gpu_worker.wire import compression

_PREFIX_BYTES = assembling.PREFIX_BYTES
_SMALL_BYTES = 2**16
# What a message that waits costs beside its bytes.
_OVERHEAD_BYTES = 256


class _Waiting(NamedTuple):
    """A message that has come and was not taken yet."""

    compressed: bool
    message: streams.Buffer
    booked_bytes: int


class Streaming(exchange.Exchange):
    """One call."""

    __slots__ = (
        "_ended",
        "_method",
        "_news",
        "_opened",
        "_owed_bytes",
        "_returned_bytes",
        "_room",
        "_task",
        "_waiting",
    )

    def __init__(
        self, front: exchange.Front, stream: streams.Stream, view: heads.View, method: calls.Streaming
    ) -> None:
        super().__init__(front, stream, view)
        self._method = method
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._owed_bytes = 0
        self._returned_bytes = 0
        self._ended = False
        self._opened = False
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = front.loop.create_task(self._run())

    @property
    def withholds(self) -> bool:
        return bool(self._owed_bytes)

    # -- streams.Handler

    def data(self, piece: streams.Buffer, ended: bool) -> None:  # noqa: FBT001 - Handler's
        if self.answered:
            self.stream.taken(len(piece))
            return
        self._owed_bytes += len(piece)
        if ended or not self.grows(piece):
            for compressed, message in self.add(piece):
                self._queue(compressed, message)
        if self._waiting:
            self._returned_bytes += self.stream.keep(len(piece))
        else:
            self._pay()
        if ended:
            self.ended()
        else:
            _wake(self._news)

    def ended(self) -> None:
        self._ended = True
        if self._assembler is not None and self._assembler.incomplete:
            self.fail(grpc.StatusCode.INTERNAL, "the requests end in the middle of a message")
        _wake(self._news)

    def writable(self) -> None:
        _wake(self._room)

    def _queue(self, compressed: bool, message: streams.Buffer) -> None:  # noqa: FBT001 - the flag of the message
        """A first small message passes: whoever takes it books it, and where there is no room says so."""
        booked = len(message) + _OVERHEAD_BYTES if self._waiting or len(message) > _SMALL_BYTES else 0
        if not self.answered and self.book(booked):
            self._waiting.append(_Waiting(compressed, message, booked))

    # -- calls.Call

    async def write(self, message: protobuf.Message) -> None:
        await self.write_parts([message.SerializeToString()])

    async def write_parts(self, parts: list[streams.Buffer]) -> None:
        if not self.answered:
            await self._send(parts)
        while not self.answered and not self.stream.has_room():
            self._room = self.front.loop.create_future()
            await self._room

    # -- ends

    def fail(self, code: grpc.StatusCode, message: str) -> None:
        if self._opened and not self.answered:
            self.over()
            self.stream.finish(statuses.trailers(code, message))
            self.give_up()
        else:
            super().fail(code, message)

    def over(self) -> None:
        super().over()
        self._waiting.clear()
        self._pay()

    def give_up(self) -> None:
        task, self._task = self._task, None
        if task is not None and not task.done():
            stream = self.stream
            stream.lingers()
            task.add_done_callback(lambda _done: stream.rested())
            task.cancel()

    # -- the task

    async def _run(self) -> None:
        try:
            await self._method.handle(self._requests(), self)
        except Exception as error:  # noqa: BLE001 - every failure is told
            self._task = None
            self.fail_with(error)
        else:
            self._task = None
            self._finish()

    async def _requests(self) -> AsyncIterator[Any]:
        while True:
            while self._waiting:
                yield await self._take()
            if self._ended:
                return
            self._news = self.front.loop.create_future()
            await self._news

    async def _take(self) -> Any:
        """The next request; its client may send as much again."""
        compressed, message, booked_bytes = self._waiting.popleft()
        if not self._waiting:
            self._pay()
        if compressed and self.in_thread(len(message)):
            message = await self.front.turns.begin(self.stream.host, self.inflating(message)).done
        elif compressed:
            message = compression.finished(self.inflating(message))
        # Who is over has let go of all that was booked.
        if not self.answered:
            self.unbook(booked_bytes)
        if self._method.request is None:
            return message
        try:
            return self._method.request.FromString(bytes(message))
        except protobuf.DecodeError:
            raise border.InferenceError(border.ErrorKind.INTERNAL, "Exception deserializing request!") from None

    def _pay(self) -> None:
        """What has come was taken: the client gets room for it."""
        owed, self._owed_bytes = self._owed_bytes, 0
        if owed:
            returned, self._returned_bytes = self._returned_bytes, 0
            self.stream.release(owed, returned)

    async def _send(self, parts: list[streams.Buffer]) -> None:
        size = sum(map(len, parts))
        flag = b"\0"
        if self.front.compress and self.view.accepts_gzip:
            flag = b"\1"
            parts = await self._compressed(parts, size)
            size = sum(map(len, parts))
        head = None if self._opened else self._head()
        if not self.answered:
            self.stream.send(head, [flag + size.to_bytes(4), *parts], _PREFIX_BYTES + size)

    async def _compressed(self, parts: list[streams.Buffer], size: int) -> list[streams.Buffer]:
        if not self.in_thread(size):
            return compression.deflate(parts, "gzip")
        return await self.front.turns.begin(self.stream.host, compression.deflating(parts, "gzip")).done

    def _head(self) -> Any:
        self._opened = True
        return statuses.HEAD_GZIP if self.front.compress and self.view.accepts_gzip else statuses.HEAD

    def _finish(self) -> None:
        if self.answered:
            return
        if not self._opened:
            self.stream.send(self._head(), (), 0)
        self.over()
        self.stream.finish(statuses.OK)


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
