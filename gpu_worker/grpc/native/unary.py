"""Calls of one request and one answer; ModelInfer among them, which has no task of its own.

Must never leave a request with the engine that its client has given up.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf import message as protobuf

from gpu_worker.engine import border
from gpu_worker.grpc import calls, service
from gpu_worker.grpc.native import assembling, exchange, heads, statuses
from gpu_worker.http2 import streams
from gpu_worker.wire import compression

_PREFIX_BYTES = assembling.PREFIX_BYTES
# What the length of a message may say, for clients that read it as signed.
_MOST_BYTES = 2**31 - 1
_NOTED_CHARACTERS = 256
_UNDECODABLE = "Exception deserializing request!"


class Whole(exchange.Exchange):
    """Gathers the one request of a call."""

    __slots__ = ()

    def start(self, message: streams.Buffer) -> None:
        """Takes the request's bytes."""
        raise NotImplementedError

    def data(self, piece: streams.Buffer, ended: bool) -> None:  # noqa: FBT001 - Handler's
        size = len(piece)
        self.stream.taken(size)
        if not ended and self.grows(piece):
            return
        # Most requests are one message in one frame.
        if (
            ended
            and size >= _PREFIX_BYTES
            and not piece[0]
            and int.from_bytes(piece[1:_PREFIX_BYTES]) == size - _PREFIX_BYTES
            and self._assembler is None
            and not self.started
        ):
            self.started = True
            self.start(piece[_PREFIX_BYTES:])
            return
        self._gather(piece)
        if ended:
            self.ended()

    def ended(self) -> None:
        if self.started or self.answered:
            return
        if self._assembler is not None and self._assembler.incomplete:
            self.fail(grpc.StatusCode.INTERNAL, "the request ends in the middle of its message")
        else:
            self.fail(grpc.StatusCode.UNIMPLEMENTED, "the request has no message, one is expected")

    def _gather(self, piece: streams.Buffer) -> None:
        found = self.add(piece)
        more = self._assembler is not None and self._assembler.incomplete
        if len(found) + self.started + (more and bool(found or self.started)) > 1:
            self.fail(grpc.StatusCode.UNIMPLEMENTED, "the request has more than one message")
            return
        for compressed, message in found:
            self.started = True
            if compressed:
                self._inflate(message)
            else:
                self.start(message)

    def _inflate(self, message: streams.Buffer) -> None:
        if self.in_thread(len(message)):
            self.beside(self.inflating(message), len(message), self.start)
            return
        try:
            whole = compression.finished(self.inflating(message))
        except (border.InferenceError, assembling.TooLarge) as error:
            self.fail_with(error)
        else:
            self.start(whole)

    def answer(self, pieces: list[streams.Buffer]) -> None:
        """Sends the one message of the answer, compressed where both sides want that."""
        size = sum(map(len, pieces))
        if size > _MOST_BYTES:
            self.fail(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"the answer has {size} bytes, a message at most {_MOST_BYTES}"
            )
            return
        if self.front.compress and self.view.accepts_gzip:
            self._answer_compressed(pieces, size)
            return
        self.over()
        pieces.insert(0, b"\0" + size.to_bytes(4))
        self.stream.respond(statuses.HEAD, pieces, size + _PREFIX_BYTES, statuses.OK)

    def _answer_compressed(self, parts: list[streams.Buffer], size: int) -> None:
        if self.in_thread(size):
            self.beside(compression.deflating(parts, "gzip"), size, self._send_compressed)
        else:
            self._send_compressed(compression.deflate(parts, "gzip"))

    def _send_compressed(self, parts: list[streams.Buffer]) -> None:
        self.over()
        size = sum(map(len, parts))
        parts.insert(0, b"\1" + size.to_bytes(4))
        self.stream.respond(statuses.HEAD_GZIP, parts, size + _PREFIX_BYTES, statuses.OK)


class Infer(Whole):
    """One ModelInfer call; its request's reply too."""

    __slots__ = ()

    def data(self, piece: streams.Buffer, ended: bool) -> None:  # noqa: FBT001 - Handler's
        if ended and type(piece) is bytes and self._assembler is None and not self.started:
            service = self.front.service
            request = None if service.ruled else service.plans.known(piece, self)
            if request is not None:
                self.started = True
                stream = self.stream
                stream.host.consumed(stream, len(piece))
                self._submit(request, len(piece))
                return
        super().data(piece, ended)

    def start(self, message: streams.Buffer) -> None:
        service = self.front.service
        try:
            if service.ruled:
                service.check(self)
            request = service.plans.decode(message, self)
        except protobuf.DecodeError:
            self.fail(grpc.StatusCode.INTERNAL, _UNDECODABLE)
        except Exception as error:  # noqa: BLE001 - every failure is told
            self.fail_with(error)
        else:
            self._submit(request, len(message))

    def _submit(self, request: border.InferRequest, size_bytes: int) -> None:
        front = self.front
        request.deadline_s = self.deadline_s
        self.model = model = request.model
        try:
            if front.service.ruled:
                front.service.complete(request, self)
            if request.form is None:
                size_bytes += front.service.claim(request)
            front.intake.submit(request, size_bytes)
        except Exception as error:  # noqa: BLE001 - every failure is told
            self._fail(error)
            return
        self.held_bytes = size_bytes
        self.request = request
        notes = self.stream.host.notes
        if model not in notes and len(model) <= _NOTED_CHARACTERS:
            self.stream.host.note(model)

    def give_up(self) -> None:
        request, self.request = self.request, None
        if request is not None:
            # Its bytes stay booked until the engine, which may still have them, has answered.
            self.lingers = True
            self.stream.lingers()
            request.cancel()

    def _let_go(self) -> None:
        self.front.intake.let_go(self.held_bytes)
        self.held_bytes = 0

    def __call__(self, answer: service.Answer, *, final: bool = True) -> None:
        front, stream = self.front, self.stream
        # Else the request and this would hold each other until garbage is searched for.
        request, self.request = self.request, None
        if final:
            front.intake.finished(self.held_bytes)
            self.held_bytes = 0
            if self.lingers:
                self.lingers = False
                stream.rested()
        if request is None:
            return
        if not final:
            answer = self._cut_short(request, answer)
        if isinstance(answer, border.InferenceError):
            self._fail(answer)
            return
        if front.engine.leaving(self.model):
            stream.go_away()
        try:
            parts, size = front.service.plans.frame(answer)
            if size > _MOST_BYTES or (front.compress and self.view.accepts_gzip):
                self.answer(front.service.plans.encode(answer))
                return
        except Exception as error:  # noqa: BLE001 - every failure is told
            self.fail_with(error)
            return
        self.answered = True
        if self._slot or self._assembler is not None:
            self.over()
        stream.respond(statuses.HEAD, parts, size, statuses.OK)

    def _cut_short(self, request: border.InferRequest, answer: service.Answer) -> service.Answer:
        """One of several answers: there is room for one."""
        self._let_go()
        request.cancel()
        return answer if isinstance(answer, border.InferenceError) else service.decoupled(answer.model_name)

    def _fail(self, error: Exception) -> None:
        """The model that was asked for may be elsewhere by now."""
        if self.front.engine.leaving(self.model):
            self.stream.go_away()
        self.fail_with(error)


class Unary(Whole):
    """One call of any other method."""

    __slots__ = ("_method", "_task")

    def __init__(self, front: exchange.Front, stream: streams.Stream, view: heads.View, method: calls.Unary) -> None:
        super().__init__(front, stream, view)
        self._method = method
        self._task: asyncio.Task[None] | None = None

    def start(self, message: streams.Buffer) -> None:
        try:
            request = self._method.request.FromString(bytes(message))
        except protobuf.DecodeError:
            self.fail(grpc.StatusCode.INTERNAL, _UNDECODABLE)
            return
        self._task = self.front.loop.create_task(self._run(request))

    def give_up(self) -> None:
        task, self._task = self._task, None
        if task is not None and not task.done():
            stream = self.stream
            stream.lingers()
            task.add_done_callback(lambda _done: stream.rested())
            task.cancel()

    async def _run(self, request: Any) -> None:
        try:
            answer = await self._method.handle(request, self)
        except Exception as error:  # noqa: BLE001 - every failure is told
            self._task = None
            self.fail_with(error)
        else:
            self._task = None
            if not self.answered:
                self.answer([answer.SerializeToString()])
