"""One HTTP/1.1 connection without a socket, an application that echoes, and a client that reads the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httptools

from gpu_worker import core
from gpu_worker.http import limits as http_limits
from gpu_worker.http import messages, protocol, server
from gpu_worker.wire import intake as wire_intake

_ENGINE = core.Core.create(core.Options(repositories=()))


class Wire(asyncio.Transport):
    """The far end of a connection: keeps what is written, can refuse to take more."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.ended = False
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def writelines(self, list_of_data: Sequence[bytes | bytearray | memoryview]) -> None:  # type: ignore[override]  # the stub's parameter is an iterable of any
        for data in list_of_data:
            self.write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    abort = close

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return 0


class Echo:
    """Answers each request with its body, when told to; control requests are those to /alone."""

    def __init__(self) -> None:
        self.asked: list[messages.Request] = []
        self.at_once = False

    def leaving(self, target: bytes) -> bool:
        return target == b"/leaving"

    def parallel(self, request: messages.Request) -> bool:
        return request.target != b"/alone"

    def handle(self, request: messages.Request) -> None:
        self.asked.append(request)
        if self.at_once:
            self.reply(request)

    def reply(self, request: messages.Request) -> None:
        request.answer(messages.Response(200, [request.body], messages.OCTETS))


class Answers:
    """The bodies and statuses that a client would read."""

    def __init__(self, raw: bytes) -> None:
        self.bodies: list[bytes] = []
        self.statuses: list[int] = []
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(raw)

    def on_message_begin(self) -> None:
        self.bodies.append(b"")

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body


class Bench:
    """A connection with all that is around it."""

    def __init__(self, limits: http_limits.Limits | None = None) -> None:
        self.app = Echo()
        self.intake = wire_intake.Intake(_ENGINE, wire_intake.Bounds(body_bytes=10_000))
        self.server = server.Server(self.app, self.intake, limits)
        self.connection = protocol.Connection(self.server)
        self.wire = Wire()
        self.connection.connection_made(self.wire)

    def feed(self, data: bytes, cuts: Sequence[int] = ()) -> None:
        start = 0
        for cut in sorted({*cuts, len(data)}):
            if start < cut <= len(data):
                self.connection.data_received(data[start:cut])
                start = cut
