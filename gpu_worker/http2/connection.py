"""One connection on its socket: reads, writes, presses back, ends.

Joins all that one turn of the event loop has to say in one write. A client that does not read is not read from, and is
cut off when it takes nothing for too long. Must never raise out of a callback, or know what a request means.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable
from typing import Protocol

from gpu_worker.http2 import codes, session, streams, watch
from gpu_worker.http2 import limits as http2_limits

_JOINED_BYTES = 2**17
# Pieces that are larger on average are not copied.
_LARGE_BYTES = 2**11


class Host(Protocol):
    """What a connection asks of the server it belongs to."""

    application: streams.Application
    limits: http2_limits.Limits
    clock: Callable[[], float]
    draining: bool

    def joined(self, connection: Connection) -> bool:
        """Notes a connection; False when there are too many."""
        ...

    def left(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """The protocol of one connection; see the module."""

    def __init__(self, server: Host) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        self._stuck_since_s = math.inf
        self._unsent_bytes = 0
        self._closing_since_s = math.inf
        self.session = session.Session(server.application, server.limits, server.clock)
        self._watch = watch.Watch(self.session, server.limits, server.clock())
        self.session.sender.wake = self._wake
        self.data_received = self.session.receive  # type: ignore[method-assign]  # a call less for each read

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream_transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream protocol is given one
        self._transport = stream_transport
        joined = self._server.joined(self)
        if not _speaks_http2(transport):
            stream_transport.abort()
            return
        stream_transport.set_write_buffer_limits(self._server.limits.write_buffer_bytes)
        self.session.start()
        if self._server.draining:
            self.session.go_away()
        if not joined:
            self.session.fail(codes.calm("too many connections; try again later"))

    def eof_received(self) -> bool:
        # A client that closes its side has gone: who waits for answers keeps it open.
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self.session.lose()
        self._server.left(self)

    def pause_writing(self) -> None:
        if self._transport is None:
            return
        self.session.sender.held = True
        self._stuck_since_s = self._server.clock()
        self._unsent_bytes = self._transport.get_write_buffer_size()
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._stuck_since_s = math.inf
        self.session.sender.held = False
        self.session.sender.pump()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- the server's side

    def sweep(self, now_s: float) -> None:
        """Does what is due at `now_s`."""
        self._check_writing(now_s)
        if now_s >= self._closing_since_s + self._server.limits.linger_s:
            self._linger_on(now_s)
        self._watch.look(now_s)

    def go_away(self) -> None:
        """Asks the client to open no more calls here; the connection ends with those there are."""
        self.session.go_away()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- writing

    def _wake(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        transport, sender = self._transport, self.session.sender
        if transport is None or self._closing_since_s < math.inf:
            sender.take()
            self._flushing = False
            return
        while out := sender.take():
            total = sum(map(len, out))
            if total <= _JOINED_BYTES or total < _LARGE_BYTES * len(out):
                transport.write(b"".join(out))
            else:
                transport.writelines(out)
            sender.pump()
        self._flushing = False
        if self.session.ended:
            self._close(transport)

    def _close(self, transport: asyncio.Transport) -> None:
        """Closes the sending side first: closing at once could reset the connection before the last words are read."""
        self._closing_since_s = self._server.clock()
        self._unsent_bytes = transport.get_write_buffer_size()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _linger_on(self, now_s: float) -> None:
        """Who still takes its last answers has time for as long as it takes something."""
        unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if unsent >= self._unsent_bytes:
            self.abort()
        self._closing_since_s, self._unsent_bytes = now_s, unsent

    def _check_writing(self, now_s: float) -> None:
        """A slow reader has time for as long as it takes something."""
        if self._transport is None or now_s < self._stuck_since_s + self._server.limits.write_timeout_s:
            return
        unsent = self._transport.get_write_buffer_size()
        if unsent >= self._unsent_bytes:
            self.abort()
        self._stuck_since_s, self._unsent_bytes = now_s, unsent


def _speaks_http2(transport: asyncio.BaseTransport) -> bool:
    """With TLS, HTTP/2 has to be agreed on (RFC 9113 section 3.2)."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    return tls is None or tls.selected_alpn_protocol() == "h2"
