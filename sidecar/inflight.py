"""What is under way on one forwarded connection, read from the bytes that pass: pure, no sockets.

V2 statistics count requests when they are finished, so what still runs is seen here or nowhere.

Proven: an HTTP/1.1 request counts from its first byte to the last byte of its answer, pipelined ones too, and for the
model that its path names; HTTP/2 streams (gRPC calls) count from HEADERS to the end or reset of the stream. Header
blocks are not decoded, so a stream counts for every model of its endpoint, whatever is called: a health watch that is
kept open counts as use. Bytes that are neither (TLS, upgraded connections, HEAD, errors) count while the client spoke
last. Not seen at all: requests that reach the worker beside its endpoints; they show in the statistics once answered.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from typing import Protocol

import httptools

_INFER = re.compile(rb"/v2/models/([^/?]+)(?:/versions/[^/?]+)?/(?:infer|generate|generate_stream)(?:\?|$)")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM = 0x0, 0x1, 0x3
_END_STREAM = 0x1

Use = str | None
"""A model's served name; None for every model of the endpoint."""


class Observer(Protocol):
    """Sees both directions of one connection."""

    def sent(self, data: bytes) -> None:
        """Bytes from the client."""
        ...

    def answered(self, data: bytes) -> None:
        """Bytes from the worker."""
        ...

    def busy(self) -> bool:
        """Whether closing now would cut a call."""
        ...

    def uses(self) -> Iterator[Use]:
        """One for each inference that may be under way."""
        ...

    def farewell(self) -> bytes:
        """What may be sent to the client right now to tell it to go; empty where there is no such word."""
        ...


class Plain:
    """Counts nothing: for metrics, which are no use of a model."""

    def __init__(self) -> None:
        self._asked = False

    def sent(self, _data: bytes) -> None:
        self._asked = True

    def answered(self, _data: bytes) -> None:
        self._asked = False

    def busy(self) -> bool:
        return self._asked

    def uses(self) -> Iterator[Use]:
        return iter(())

    def farewell(self) -> bytes:
        return b""


class Opaque(Plain):
    """Bytes that nobody here understands."""

    def uses(self) -> Iterator[Use]:
        return iter((None,) if self._asked else ())


class Http1:
    """HTTP/1.1, as long as both sides speak it."""

    def __init__(self) -> None:
        self._requests = httptools.HttpRequestParser(_RequestEvents(self))
        self._responses = httptools.HttpResponseParser(_ResponseEvents(self))
        self._open: collections.deque[_Request] = collections.deque()
        self._opaque: Opaque | None = None

    def sent(self, data: bytes) -> None:
        if self._opaque is None:
            self._feed(self._requests, data)
        if self._opaque is not None:
            self._opaque.sent(data)

    def answered(self, data: bytes) -> None:
        if self._opaque is None:
            self._feed(self._responses, data)
        if self._opaque is not None:
            self._opaque.answered(data)

    def busy(self) -> bool:
        return self._opaque.busy() if self._opaque else bool(self._open)

    def uses(self) -> Iterator[Use]:
        if self._opaque:
            return self._opaque.uses()
        return (request.model for request in self._open if request.infers)

    def farewell(self) -> bytes:
        return b""

    def _feed(self, parser: httptools.HttpRequestParser | httptools.HttpResponseParser, data: bytes) -> None:
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._give_up()

    def _give_up(self) -> None:
        self._opaque = Opaque()
        if self._open:
            self._opaque.sent(b"")

    def begun(self) -> None:
        self._open.append(_Request())

    def named(self, piece: bytes) -> None:
        self._open[-1].url += piece

    def headed(self) -> None:
        request = self._open[-1]
        found = _INFER.match(request.url)
        request.infers = found is not None
        request.model = found[1].decode("ascii", "replace") if found else None
        if self._requests.get_method() == b"HEAD":
            # Its answer announces a body that never comes.
            self._give_up()

    def finished(self) -> None:
        if self._responses.get_status_code() >= 200 and self._open:
            self._open.popleft()


class _Request:
    """Until its head is read a request may be anything, so it counts."""

    def __init__(self) -> None:
        self.url = b""
        self.infers = True
        self.model: Use = None


class _RequestEvents:
    def __init__(self, connection: Http1) -> None:
        self.on_message_begin = connection.begun
        self.on_url = connection.named
        self.on_headers_complete = connection.headed


class _ResponseEvents:
    def __init__(self, connection: Http1) -> None:
        self.on_message_complete = connection.finished


class Http2:
    """HTTP/2 with prior knowledge, as gRPC speaks it."""

    def __init__(self) -> None:
        self._from_client, self._from_worker = _Frames(len(_PREFACE)), _Frames(0)
        self._start = b""
        self._open: set[int] = set()
        self._last = 0
        self._opaque: Opaque | None = None

    def sent(self, data: bytes) -> None:
        if len(self._start) < len(_PREFACE):
            self._start += data[: len(_PREFACE) - len(self._start)]
            if not _PREFACE.startswith(self._start):
                self._opaque = Opaque()
        if self._opaque:
            self._opaque.sent(data)
            return
        for kind, _flags, stream in self._from_client.feed(data):
            if kind == _HEADERS and stream > self._last:
                self._last = stream
                self._open.add(stream)
            elif kind == _RST_STREAM:
                self._open.discard(stream)

    def answered(self, data: bytes) -> None:
        if self._opaque:
            self._opaque.answered(data)
            return
        for kind, flags, stream in self._from_worker.feed(data):
            ends = kind in {_DATA, _HEADERS} and flags & _END_STREAM
            if ends or kind == _RST_STREAM:
                self._open.discard(stream)

    def busy(self) -> bool:
        # The last frame of a stream counts when its header passes; the rest of it must pass as well.
        return self._opaque.busy() if self._opaque else bool(self._open) or not self._from_worker.between()

    def uses(self) -> Iterator[Use]:
        return self._opaque.uses() if self._opaque else iter([None] * len(self._open))

    def farewell(self) -> bytes:
        """GOAWAY that takes no stream back: the client opens new ones elsewhere and lets the open ones finish."""
        if self._opaque or not self._last or not self._from_worker.between():
            return b""
        return b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + b"\x7f\xff\xff\xff" + b"\x00\x00\x00\x00"


class _Frames:
    """Cuts one direction into the headers of its frames: (type, flags, stream)."""

    def __init__(self, skip_bytes: int) -> None:
        self._skip_bytes = skip_bytes
        self._head = b""

    def between(self) -> bool:
        return not self._skip_bytes and not self._head

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        at = 0
        while at < len(data):
            if self._skip_bytes:
                step = min(self._skip_bytes, len(data) - at)
                self._skip_bytes -= step
                at += step
                continue
            piece = data[at : at + 9 - len(self._head)]
            self._head += piece
            at += len(piece)
            if len(self._head) == 9:
                head, self._head = self._head, b""
                self._skip_bytes = int.from_bytes(head[:3], "big")
                yield head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF
