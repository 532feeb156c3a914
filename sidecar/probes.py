"""The HTTP port that a pod's probes ask: small, bounded, GET only.

Decides how a probe is spoken to. One request for each connection; its head must come soon and be small, and only so
many connections are kept. Must never know what the paths mean.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http
import json
from collections.abc import Awaitable, Callable, Mapping

import httptools
import structlog

log = structlog.get_logger()

_MOST_CONNECTIONS = 64
_MOST_HEAD_BYTES = 8192
_HEAD_S, _LINGER_S = 5.0, 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A status and what is said with it, as JSON."""

    status: int
    body: Mapping[str, object]


Answerer = Callable[[str, str], Awaitable[Answer]]
"""Answers a path and its query (without the question mark)."""


class Server:
    """The listener and its connections. `start`, then `close`, on one event loop."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None

    async def start(self, address: str, port: int) -> int:
        """Listens; returns the bound port. OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Connection(self), address, port)
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Ends all connections; what is being answered is cut."""
        if self._listener:
            self._listener.close()
        for connection in tuple(self._connections):
            connection.abort()
        if self._listener:
            await self._listener.wait_closed()

    def joined(self, connection: _Connection) -> bool:
        """Notes a connection; False when there are too many."""
        self._connections.add(connection)
        return len(self._connections) <= _MOST_CONNECTIONS

    def left(self, connection: _Connection) -> None:
        self._connections.discard(connection)


class _Connection(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._target = b""
        self._head_bytes = 0
        self._work: asyncio.Task[None] | None = None
        self._answered = False
        self._half_closed = False
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream protocol is given a stream transport
        self._end = self._loop.call_later(_HEAD_S, self.abort)
        if not self._server.joined(self):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._server.left(self)
        self._transport = None
        if self._end:
            self._end.cancel()
        if self._work:
            self._work.cancel()

    def data_received(self, data: bytes) -> None:
        if self._work or self._answered:
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MOST_HEAD_BYTES:
            self._refuse(431, f"a request here is smaller than {_MOST_HEAD_BYTES} bytes")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400, "malformed HTTP")

    def eof_received(self) -> bool:
        # A client may close its side and still wait for its answer.
        self._half_closed = True
        return self._work is not None and not self._answered

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_headers_complete(self) -> None:
        if self._work or self._answered:
            return
        if self._parser.get_method() != b"GET":
            self._refuse(405, "only GET is answered here", b"Allow: GET\r\n")
            return
        if self._end:
            self._end.cancel()
        self._work = self._loop.create_task(self._answer())

    def abort(self) -> None:
        if self._transport:
            self._transport.abort()

    async def _answer(self) -> None:
        path, _, query = self._target.decode("latin-1").partition("?")
        try:
            answer = await self._server.answerer(path, query)
        except Exception:
            log.exception("probe.failed", path=path[:200])
            answer = Answer(500, {"error": "internal error; the sidecar's log says more"})
        self._write(answer)

    def _refuse(self, status: int, message: str, headers: bytes = b"") -> None:
        self._write(Answer(status, {"error": message}), headers)

    def _write(self, answer: Answer, headers: bytes = b"") -> None:
        if self._transport is None or self._answered:
            return
        self._answered = True
        body = json.dumps(answer.body).encode()
        head = f"HTTP/1.1 {answer.status} {http.HTTPStatus(answer.status).phrase}\r\nContent-Type: application/json\r\n"
        self._transport.write(
            b"%b%bContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (head.encode(), headers, len(body), body)
        )
        if self._half_closed:
            self._transport.close()
            return
        # Closing at once could reset the connection before a client that still sends has read the answer.
        self._transport.write_eof()
        if self._end:
            self._end.cancel()
        self._end = self._loop.call_later(_LINGER_S, self.abort)
