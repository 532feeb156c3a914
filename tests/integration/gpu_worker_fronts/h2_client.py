"""A gRPC client frame by frame, on an independent HTTP/2 implementation: does what no decent client would."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import h2.config
import h2.connection
import h2.events
import h2.settings

from gpu_worker.http2 import codes

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
PATIENCE_S = 60
Fields = Sequence[tuple[str, str]]


def wire(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4) + message


@dataclasses.dataclass
class Answer:
    """What came on one stream."""

    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.fields["grpc-status"])

    def messages(self) -> list[tuple[int, bytes]]:
        found, data = [], self.body
        while data:
            size = int.from_bytes(data[1:5])
            found.append((data[0], data[5 : 5 + size]))
            data = data[5 + size :]
        return found


class Goodbye(NamedTuple):
    """A GOAWAY."""

    last: int
    code: codes.Code
    words: bytes


class Client:
    """Sends what it is told; takes bytes off its windows only where `takes` says so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.takes = True
        self.over = False
        self.goodbyes: list[Goodbye] = []
        self._rest = b""
        self.answers: dict[int, Answer] = {}
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))

    async def start(self, window: int = 65535) -> None:
        self.http2.initiate_connection()
        window_setting = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
        self.http2.update_settings({window_setting: window})
        await self.flush()
        while self.http2.local_settings[window_setting] != window:
            await self.read()

    async def flush(self) -> None:
        self.writer.write(self.http2.data_to_send())
        await self.writer.drain()

    async def open(self, path: str = INFER, more: Fields = (), *, ended: bool = False, method: str = "POST") -> int:
        stream = self.http2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "here"), ("te", "trailers")]
        if not any(name == "content-type" for name, _ in more):
            fields.append(("content-type", "application/grpc"))
        self.http2.send_headers(stream, [*fields, *more], end_stream=ended)
        self.answers[stream] = Answer()
        await self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, ended: bool = False) -> None:
        """Waits for windows where it has to."""
        while data:
            room = min(self.http2.local_flow_control_window(stream), self.http2.max_outbound_frame_size)
            if not room:
                await self.read()
                continue
            self.http2.send_data(stream, data[:room])
            data = data[room:]
            await self.flush()
        if ended:
            self.http2.end_stream(stream)
            await self.flush()

    async def ask(self, data: bytes, path: str = INFER, more: Fields = ()) -> Answer:
        stream = await self.open(path, more)
        await self.send(stream, data, ended=True)
        return await self.answer(stream)

    async def answer(self, stream: int) -> Answer:
        """What came once the stream is over, one way or another."""
        found = self.answers[stream]
        while not found.ended and found.reset is None and not self.over:
            await self.read()
        return found

    async def read(self) -> bool:
        """Reads once; false at the end of the connection."""
        async with asyncio.timeout(PATIENCE_S):
            data = await self.reader.read(2**16)
        for event in self.http2.receive_data(self._without_goodbyes(data)):
            self._note(event)
        await self.flush()
        self.over = not data
        return bool(data)

    def _without_goodbyes(self, data: bytes) -> bytes:
        """Whole frames but GOAWAY, after which the library would hear of nothing more."""
        self._rest += data
        kept, at = b"", 0
        while len(self._rest) - at >= 9:
            end = at + 9 + int.from_bytes(self._rest[at : at + 3])
            if end > len(self._rest):
                break
            if self._rest[at + 3] == codes.GOAWAY:
                last, code = int.from_bytes(self._rest[at + 9 : at + 13]), self._rest[at + 16]
                self.goodbyes.append(Goodbye(last, codes.Code(code), self._rest[at + 17 : end]))
            else:
                kept += self._rest[at:end]
            at = end
        self._rest = self._rest[at:]
        return kept

    async def until_closed(self) -> None:
        with contextlib.suppress(ConnectionError):
            while await self.read():
                pass

    def _note(self, event: h2.events.Event) -> None:
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            answer.fields |= {str(name): str(value) for name, value in event.headers or ()}
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data or b""
            if self.takes and event.flow_controlled_length:
                self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
        elif isinstance(event, h2.events.StreamEnded):
            answer.ended = True
        elif isinstance(event, h2.events.StreamReset):
            answer.reset = int(event.error_code or 0)


@contextlib.asynccontextmanager
async def connect(port: int, *, window: int = 65535, small_buffers: bool = False) -> AsyncIterator[Client]:
    """A client that has begun; with `small_buffers` its socket takes little that is not read."""
    link = socket.socket()
    link.setblocking(False)  # noqa: FBT003 - the socket's own
    if small_buffers:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(link, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=link, limit=2**12)
    client = Client(reader, writer)
    await client.start(window)
    try:
        yield client
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
