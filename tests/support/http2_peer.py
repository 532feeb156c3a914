"""A session without sockets, the frames that a client would send it, and an application that notes what it hears."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from typing import Any

from gpu_worker.http2 import codes, frames, headers, hpack, session, streams, watch
from gpu_worker.http2 import limits as http2_limits

REQUEST: tuple[hpack.Field, ...] = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/"),
    (b":authority", b"here"),
)
HEAD = frames.Block(hpack.encode(((b":status", b"200"),)), last=False)
TRAILERS = frames.Block(hpack.encode(((b"grpc-status", b"0"),)), last=True)


@dataclasses.dataclass
class Clock:
    """Time that passes when told to."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Handler:
    """Notes what it hears of one stream; takes bytes at once where `takes` says so, and sends all back at the end."""

    def __init__(self, stream: streams.Stream, application: Recorder) -> None:
        self.stream = stream
        self.body = b""
        self.over = False
        self.reset_code: int | None = None
        self.times_writable = 0
        self._application = application

    def data(self, piece: streams.Buffer, ended: bool) -> None:  # noqa: FBT001
        self.body += piece
        if self._application.takes:
            self.stream.taken(len(piece))
        if ended:
            self.ended()

    def ended(self) -> None:
        self.over = True
        if self._application.answers:
            self.stream.respond(HEAD, [self.body], len(self.body), TRAILERS)

    def reset(self, code: int) -> None:
        self.reset_code = code

    def writable(self) -> None:
        self.times_writable += 1


class Recorder:
    """An application that keeps its handlers by stream."""

    def __init__(self, *, answers: bool = True, takes: bool = True) -> None:
        self.answers = answers
        self.takes = takes
        self.handlers: dict[int, Handler] = {}
        self.heads: dict[int, headers.Head] = {}

    def view(self, head: headers.Head) -> Any:
        return head.path

    def view_like(self, view: Any, fields: tuple[hpack.Field, ...], shared: int) -> Any:
        return view

    def opened(self, stream: streams.Stream, head: headers.Head, ended: bool) -> Handler:  # noqa: FBT001
        handler = self.handlers[stream.id] = Handler(stream, self)
        self.heads[stream.id] = head
        if ended:
            handler.ended()
        return handler


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame that the session sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Peer:
    """A client's side, byte by byte."""

    def __init__(
        self, limits: http2_limits.Limits | None = None, application: Recorder | None = None, *, greets: bool = True
    ) -> None:
        self.clock = Clock()
        self.application = application or Recorder()
        self.limits = limits or http2_limits.Limits()
        self.session = session.Session(self.application, self.limits, self.clock)
        self.watch = watch.Watch(self.session, self.limits, self.clock())
        self.session.start()
        if greets:
            self.send(codes.PREFACE + frame(codes.SETTINGS) + frame(codes.SETTINGS, codes.ACK))
            self.said()

    def send(self, *data: bytes) -> None:
        for each in data:
            self.session.receive(each)

    def wait(self, seconds: float) -> None:
        """Time passes, and is looked at."""
        self.clock.now_s += seconds
        self.watch.look(self.clock())

    def raw(self) -> bytes:
        """The bytes that the session sends now, or has sent since this was last asked."""
        said = b""
        while out := self.session.sender.take():
            said += b"".join(out)
            self.session.sender.pump()
        return said

    def said(self) -> list[Frame]:
        """The same as frames."""
        return parsed(self.raw())

    def error(self) -> tuple[codes.Code, str]:
        """Code and words of the GOAWAY with which the connection ended."""
        assert self.session.ended
        (last,) = (each for each in self.said()[-1:] if each.kind == codes.GOAWAY)
        return codes.Code(number(last.payload[4:8])), last.payload[8:].decode()

    def resets(self) -> list[tuple[int, codes.Code]]:
        """Streams that the session resets, and why."""
        assert not self.session.ended
        said = self.said()
        return [(each.stream, codes.Code(number(each.payload))) for each in said if each.kind == codes.RST_STREAM]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + struct.pack(">BBL", kind, flags, stream) + payload


def parsed(data: bytes) -> list[Frame]:
    found = []
    while data:
        size = int.from_bytes(data[:3])
        kind, flags, stream = struct.unpack(">BBL", data[3:9])
        found.append(Frame(kind, flags, stream, data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def number(payload: bytes) -> int:
    return int.from_bytes(payload)


def long(value: int) -> bytes:
    return value.to_bytes(4)


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(codes.SETTINGS, payload=b"".join(struct.pack(">HL", *pair) for pair in pairs))


def opening(
    stream: int,
    flags: int = codes.END_HEADERS,
    fields: Sequence[hpack.Field] = REQUEST,
    *,
    more: Sequence[hpack.Field] = (),
) -> bytes:
    """HEADERS of a request."""
    return frame(codes.HEADERS, flags, stream, hpack.encode((*fields, *more)))


def request(stream: int, body: bytes = b"") -> bytes:
    """A whole request."""
    return opening(stream) + frame(codes.DATA, codes.END_STREAM, stream, body)
