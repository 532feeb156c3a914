"""One HTTP/1.1 connection: parses, bounds, answers in order, and tells the client when to go.

Decides when bytes are read, how long a client may take, which requests run side by side, and when the connection ends.
It must never raise out of a callback, wait for ever, hold more than its limits, or know what a request means.
"""

from __future__ import annotations

import asyncio
import collections
import math
from typing import Protocol

import httptools

from gpu_worker.http import exchange as http_exchange
from gpu_worker.http import heads, messages, streams
from gpu_worker.http import limits as http_limits
from gpu_worker.wire import intake as wire_intake

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = b"Connection: close\r\n"
_KEEP_ALIVE = b"Connection: keep-alive\r\n"
_HEAD_END = b"\r\n\r\n"
# So many heads of a connection are learnt from: a client whose heads differ every time is not worth more.
_LESSONS = 8
_JOIN_BYTES = 64 * 2**10
_OVERHEAD_BYTES = 2**20


class Host(Protocol):
    """What a connection asks of the server it belongs to."""

    limits: http_limits.Limits
    intake: wire_intake.Intake
    secure: bool
    draining: bool

    def joined(self, connection: Connection) -> bool:
        """Notes a connection; False when there are too many."""
        ...

    def left(self, connection: Connection) -> None: ...

    def parallel(self, request: messages.Request) -> bool:
        """Whether `request` may run beside others of its connection."""
        ...

    def handle(self, request: messages.Request) -> None:
        """Sees to it that `request.answer` is called, now or later; never raises."""
        ...


class Connection(asyncio.Protocol):
    """The protocol of one connection; see the module."""

    def __init__(self, server: Host) -> None:
        self._server = server
        self._limits = server.limits
        self._template: heads.Template | None = None
        self._first = b""
        self._lessons = _LESSONS
        self._most_head_bytes = server.limits.head_bytes
        self._most_headers = server.limits.headers
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._incoming: http_exchange.Exchange | None = None
        self._in_head = False
        self._target = b""
        self._head_bytes = 0
        self._field_bytes = 0
        self._parsed = 0
        self._message_bytes = 0
        self._patient_until = math.inf
        self._waiting: collections.deque[http_exchange.Exchange] = collections.deque()
        self._answering: collections.deque[http_exchange.Exchange] = collections.deque()
        self._whole_bytes = 0
        self._pumping = False
        self._deaf = False
        self._reading_paused = False
        self._writing_paused = False
        self._unsent_bytes = 0
        self._half_closed = False
        self._ended = False
        self._old_at_s = self._loop.time() + self._limits.one_age_s()
        self.deadline = math.inf

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream protocol is given a stream transport
        if not self._server.joined(self):
            self._refuse(503, "Too many connections; try again later")
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._deaf = True
        self.deadline = math.inf
        self._drop_incoming()
        for exchange in self._waiting:
            self._let_go(exchange)
        for exchange in self._answering:
            exchange.gone = True
            if exchange.inference is not None:
                exchange.inference.cancel()
            self._abandon(exchange)
        self._waiting.clear()
        self._server.left(self)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._incoming is None and self._template is not None:
            data = self._read_quickly(self._template, data)
        if data:
            self._parse(data)
        self._pump()

    def _parse(self, data: bytes) -> None:
        parsed = self._parsed
        self._first = data if self._incoming is None and self._lessons else b""
        self._feed(data)
        self._first = b""
        self._field_bytes = self._field_bytes + len(data) if self._in_head and parsed == self._parsed else 0
        self._message_bytes += len(data)
        if self._incoming is not None:
            self._check_overhead()

    def _read_quickly(self, template: heads.Template, data: bytes) -> bytes:
        """Takes whole requests that look like one before; gives back what is left to the parser."""
        start = 0
        while start < len(data):
            end = data.find(_HEAD_END, start, start + self._most_head_bytes)
            head = template.read(data[start:end]) if end > start else None
            if head is None:
                break
            begin = end + len(_HEAD_END)
            if begin + head.body_bytes > len(data):
                break
            if not self._take(template, head, data[begin : begin + head.body_bytes]):
                break
            start = begin + head.body_bytes
        return data[start:] if start else data

    def eof_received(self) -> bool:
        # A client may close its side and still wait for its answers; TLS cannot carry that.
        self._deaf = self._half_closed = True
        self._drop_incoming()
        if self._ended or not (self._answering or self._waiting):
            return False
        if any(exchange.follows_client for exchange in self._answering):
            return False
        (self._waiting or self._answering)[-1].keep_alive = False
        return not self._server.secure

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._unsent_bytes = self._unsent()
        self._arm()
        self._regulate()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._pump()

    # -- httptools' side

    def on_message_begin(self) -> None:
        if self._deaf:
            return
        self._incoming = http_exchange.Exchange(self)
        self._in_head = True
        self._target = b""
        self._head_bytes = self._message_bytes = 0
        self._patient_until = self._loop.time() + self._limits.head_timeout_s

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        # Called many times a request: written out, for a call costs more than what it would do.
        self._parsed += 1
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self._most_head_bytes - self._field_bytes:
            self._check_head_size()
        exchange = self._incoming
        if exchange is None or not self._in_head:
            return
        headers, key = exchange.headers, name.lower()
        headers[key] = headers[key] + b", " + value if key in headers else value
        if len(headers) > self._most_headers:
            self._refuse(431, f"More than {self._most_headers} header fields")

    def on_headers_complete(self) -> None:
        self._in_head = False
        exchange = self._incoming
        if exchange is None:
            return
        exchange.method, exchange.target = self._parser.get_method(), self._target
        self._patient_until = self._loop.time() + self._limits.body_timeout_s
        self._check_head(exchange)

    def on_body(self, body: bytes) -> None:
        exchange = self._incoming
        if exchange is None:
            return
        if exchange.held_bytes + len(body) > self._limits.body_bytes:
            self._refuse(413, self._too_large())
        elif not self._server.intake.hold(len(body)):
            self._refuse(503, wire_intake.FULL)
        else:
            exchange.held_bytes += len(body)
            exchange.chunks.append(body)
            self._patient_until += len(body) / self._limits.least_bytes_per_s

    def on_message_complete(self) -> None:
        exchange = self._incoming
        if exchange is None:
            return
        self._incoming = None
        chunks, exchange.chunks = exchange.chunks, []
        exchange.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        exchange.keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self._deaf = not exchange.keep_alive
        exchange.parallel = self._server.parallel(exchange)
        # Only the first message of what came begins where that begins.
        first, self._first = self._first, b""
        if first and exchange.keep_alive and exchange.chunked:
            self._learn(first, exchange)
        self._arrived(exchange)

    def _learn(self, first: bytes, exchange: http_exchange.Exchange) -> None:
        raw, _, _ = first.partition(_HEAD_END)
        self._lessons -= 1
        self._template = heads.Template.of(
            raw, exchange.method, exchange.target, exchange.headers, parallel=exchange.parallel
        )

    def _take(self, template: heads.Template, head: heads.Head, body: bytes) -> bool:
        """Takes a request that was read without the parser; False where that must refuse it."""
        if len(body) > self._limits.body_bytes or not self._server.intake.hold(len(body)):
            return False
        exchange = http_exchange.Exchange(self, template.method, template.target, head.headers, body)
        exchange.held_bytes = len(body)
        exchange.keep_alive = True
        exchange.parallel = template.parallel
        self._target = template.target
        self._arrived(exchange)
        return True

    def _arrived(self, exchange: http_exchange.Exchange) -> None:
        self._whole_bytes += exchange.held_bytes
        self._waiting.append(exchange)

    # -- the server's side

    def answered(self, exchange: http_exchange.Exchange) -> None:
        if exchange.held_bytes:
            self._let_go(exchange)
        if exchange.response is not None and exchange.response.stream is not None:
            exchange.response.stream.attach(self._pump)
            if self._transport is None:
                self._abandon(exchange)
        self._pump()

    def _abandon(self, exchange: http_exchange.Exchange) -> None:
        """Ends a stream whose end nobody waits for, and lets go of what made it."""
        if exchange.response is not None and exchange.response.stream is not None:
            exchange.response.stream.abandon()
            exchange.inference = None

    def expire(self) -> None:
        """The deadline has passed: goes, unless a slow reader still makes progress."""
        if self._transport is None:
            return
        if self._writing_paused and self._unsent() < self._unsent_bytes:
            self._unsent_bytes = self._unsent()
            self._arm()
        elif self._writing_paused or self._ended:
            self._transport.abort()
        elif self._incoming is None:
            self._transport.close()
        else:
            self._refuse(408, "The request took too long to arrive")
            self._pump()

    @property
    def idle(self) -> bool:
        """Nothing is asked, or on its way."""
        return not (self._incoming or self._answering or self._waiting or self._ended)

    @property
    def idle_since_s(self) -> float:
        """When the connection fell idle, on the loop's clock; infinite while it is not."""
        return self.deadline - self._limits.idle_timeout_s if self.idle else math.inf

    @property
    def target(self) -> bytes:
        """What was asked for last; empty before the first request."""
        return self._target

    def end_when_idle(self) -> None:
        """Closes a connection on which nothing is asked; the others hear `Connection: close` with their next answer."""
        if self._transport and self.idle:
            self._transport.close()

    def abort(self) -> None:
        if self._transport:
            self._transport.abort()

    # -- reading

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing is upgraded: the request is answered as it is, then the connection ends.
            self._deaf = True
        except httptools.HttpParserError as error:
            self._refuse(400, f"Malformed HTTP: {error}")

    def _count_head(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        self._parsed += 1
        self._check_head_size()

    def _check_head_size(self) -> None:
        if self._head_bytes + self._field_bytes > self._limits.head_bytes:
            self._refuse(431, f"Request head larger than {self._limits.head_bytes} bytes")

    def _check_head(self, exchange: http_exchange.Exchange) -> None:
        headers = exchange.headers
        length = int(headers.get(b"content-length", 0))
        expects = headers.get(b"expect", b"").lower()
        has_body = length > 0 or b"transfer-encoding" in headers
        if length > self._limits.body_bytes:
            self._refuse(413, self._too_large())
        elif self._parser.should_upgrade() and has_body:
            self._refuse(400, "A request that asks for an upgrade cannot carry a body here")
        elif expects and expects != b"100-continue":
            self._refuse(417, "Only 'Expect: 100-continue' can be met")
        else:
            exchange.chunked = self._parser.get_http_version() != "1.0"
            exchange.expects = bool(expects) and has_body and self._parser.get_http_version() != "1.0"

    def _check_overhead(self) -> None:
        """Bounds what a message may send beside its head and body: chunk extensions, trailers, tiny chunks."""
        exchange = self._incoming
        if exchange is None:
            return
        if self._in_head:
            self._check_head_size()  # a field that goes on and on is not counted yet
        elif self._message_bytes > 2 * exchange.held_bytes + self._limits.head_bytes + _OVERHEAD_BYTES:
            self._refuse(400, "Malformed HTTP: the chunks' framing is larger than their data")

    def _refuse(self, status: int, message: str) -> None:
        """Answers in turn, then ends the connection; what else comes in is not read."""
        if self._deaf:
            return
        self._deaf = True
        self._drop_incoming()
        exchange = http_exchange.Exchange(self)
        exchange.response = messages.refusal(status, message)
        self._waiting.append(exchange)

    def _drop_incoming(self) -> None:
        if self._incoming is not None:
            self._let_go(self._incoming)
            self._incoming = None

    def _let_go(self, exchange: http_exchange.Exchange) -> None:
        self._server.intake.let_go(exchange.held_bytes)
        if exchange is not self._incoming:
            self._whole_bytes -= exchange.held_bytes
        exchange.held_bytes = 0

    def _too_large(self) -> str:
        return (
            f"Request JSON/body size exceeds the maximum allowed input size of {self._limits.body_bytes} bytes; "
            "use --http-max-input-size to raise it"
        )

    # -- answering

    def _pump(self) -> None:
        """Starts what may start and writes what may be written, in order, until neither is left."""
        if self._pumping or self._transport is None or self._ended:
            return
        self._pumping = True
        out: list[bytes | bytearray | memoryview] = []
        # What plainly cannot be done is not tried: this runs twice for every request.
        waiting, answering = self._waiting, self._answering
        while (waiting and self._start_next()) or (answering and answering[0].response and self._take_answer(out)):
            pass
        self._pumping = False
        if out:
            self._write(out)
        if self._incoming is not None:
            self._invite()
        self._arm()
        if self._reading_paused or self._is_busy():
            self._regulate()

    def _start_next(self) -> bool:
        """Inferences run side by side; anything else runs alone, since its order may matter."""
        if not self._waiting or self._writing_paused:
            return False
        head = self._waiting[0]
        if self._answering and not (head.parallel and self._answering[-1].parallel):
            return False
        if len(self._answering) >= self._limits.pipelined:
            return False
        self._answering.append(self._waiting.popleft())
        if head.response is None:
            self._server.handle(head)
        return True

    def _take_answer(self, out: list[bytes | bytearray | memoryview]) -> bool:
        if self._writing_paused or not self._answering or (response := self._answering[0].response) is None:
            return False
        if response.stream is not None:
            return self._take_pieces(self._answering[0], response, response.stream, out)
        exchange = self._answering.popleft()
        last = self._is_to_end(response) and not (self._answering or self._waiting)
        if exchange.method == b"HEAD":
            response.parts = ()
        if last or not exchange.keep_alive:
            out += messages.render(response, _CLOSE)
            self._end()
        else:
            out += messages.render(response, _KEEP_ALIVE if b"connection" in exchange.headers else b"")
        return True

    def _take_pieces(
        self,
        exchange: http_exchange.Exchange,
        response: messages.Response,
        stream: streams.Stream,
        out: list[bytes | bytearray | memoryview],
    ) -> bool:
        """Takes what a stream has; true once that was all."""
        if not stream.begun:
            stream.begun = True
            alone = self._is_to_end(response) and len(self._answering) == 1 and not self._waiting
            exchange.last = alone or not exchange.keep_alive or not exchange.chunked
            framing = b"Transfer-Encoding: chunked\r\n" if exchange.chunked else b""
            out.append(messages.render_head(response, framing + (_CLOSE if exchange.last else b"")))
        pieces = stream.take()
        out += streams.framed(pieces) if exchange.chunked else pieces
        if not stream.ended:
            return False
        if exchange.chunked:
            out.append(streams.LAST_CHUNK)
        self._answering.popleft()
        self._abandon(exchange)
        if exchange.last:
            self._end()
        return True

    def _is_to_end(self, response: messages.Response) -> bool:
        return response.close or self._server.draining or self._loop.time() >= self._old_at_s

    def _write(self, out: list[bytes | bytearray | memoryview]) -> None:
        if not out or self._transport is None:
            return
        if len(out) > 1 and sum(map(len, out)) <= _JOIN_BYTES:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)
        if self._ended:
            self._linger()

    def _invite(self) -> None:
        """Answers `Expect: 100-continue` once no answer to an earlier request can come before it."""
        exchange = self._incoming
        if exchange is None or not exchange.expects or self._in_head or self._answering or self._waiting:
            return
        exchange.expects = False
        if not exchange.held_bytes and self._transport is not None:
            self._transport.write(_CONTINUE)

    def _end(self) -> None:
        self._ended = self._deaf = True
        self._drop_incoming()

    def _linger(self) -> None:
        """Closes the sending side first: closing at once could reset the connection before the answer is read."""
        if self._transport is None:
            return
        if self._transport.can_write_eof() and not self._half_closed:
            self._transport.write_eof()
        else:
            self._transport.close()

    # -- time and pressure

    def _arm(self) -> None:
        limits = self._limits
        if self._writing_paused:
            self.deadline = self._loop.time() + limits.write_timeout_s
        elif self._ended:
            self.deadline = self._loop.time() + limits.linger_s
        elif self._incoming is not None:
            self.deadline = math.inf if self._reading_paused else self._patient_until
        elif self._answering or self._waiting:
            self.deadline = math.inf
        else:
            self.deadline = self._loop.time() + limits.idle_timeout_s

    def _regulate(self) -> None:
        """Reads on only while little is in flight and the client reads its answers."""
        transport, busy = self._transport, self._is_busy()
        if transport is None or busy == self._reading_paused or transport.is_closing():
            return
        self._reading_paused = busy
        if busy:
            transport.pause_reading()
        else:
            self._patient_until = self._loop.time() + self._limits.body_timeout_s
            transport.resume_reading()
        self._arm()

    def _is_busy(self) -> bool:
        return not self._ended and (
            self._writing_paused
            or len(self._answering) + len(self._waiting) >= self._limits.pipelined
            or self._whole_bytes > self._limits.body_bytes
        )

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport else 0
