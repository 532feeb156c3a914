"""Joins a client's connection with one to the worker and moves bytes both ways.

Decides nothing about the bytes. Back-pressure: who cannot take more stops the other from reading. A half-close is
passed on, a reset resets the other side. Must never buffer without bound, nor keep one socket when the other is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import typing
from collections.abc import Callable

from sidecar import inflight

_CONNECT_S = 5.0
_PATIENCE_S = 1.0
_BUFFER_BYTES = 256 << 10


class Link:
    """One forwarded connection. `closed` is called once, when both sockets are gone."""

    def __init__(self, observer: inflight.Observer, closed: Callable[[Link], None]) -> None:
        self.observer = observer
        self._closed = closed
        self._client = _Side(self, observer.sent)
        self._worker = _Side(self, observer.answered)
        self._client.other, self._worker.other = self._worker, self._client
        self._open = 2
        self._leaving = self._told = False
        self._patience: asyncio.TimerHandle | None = None

    async def run(self, client: socket.socket, host: str, port: int) -> None:
        """Connects both sides; forwarding goes on after this returns. Never raises for a peer's fault."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                await loop.create_connection(lambda: self._worker, host, port)
                await loop.connect_accepted_socket(lambda: self._client, client)
        except (OSError, TimeoutError):
            client.close()
            self._worker.abort()
            self._lost_early()
        except BaseException:
            client.close()
            self._worker.abort()
            raise

    def leave(self) -> None:
        """Asks the client to go, and goes as soon as nothing is under way."""
        self._leaving = True
        self.passed()

    def passed(self) -> None:
        """Bytes have passed."""
        if not self._leaving:
            return
        if not self._told and (word := self.observer.farewell()):
            self._told = True
            self._client.say(word)
            # A call that the client sends before it reads the word must not be cut.
            self._patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self._out_of_patience)
        elif self._patience is None and not self.observer.busy():
            self._worker.close()
            self._client.close()

    def abort(self) -> None:
        self._client.abort()
        self._worker.abort()

    def lost(self) -> None:
        self._open -= 1
        if self._open == 0:
            if self._patience is not None:
                self._patience.cancel()
            self._closed(self)

    def _out_of_patience(self) -> None:
        self._patience = None
        self.passed()

    def _lost_early(self) -> None:
        """A side that never had a socket tells nobody that it is gone."""
        for side in (self._client, self._worker):
            if side.transport is None:
                self.lost()


class _Side(asyncio.Protocol):
    """One of the two sockets."""

    other: _Side

    def __init__(self, link: Link, observe: Callable[[bytes], None]) -> None:
        self._link, self._observe = link, observe
        self.transport: asyncio.Transport | None = None
        self._ended = self._waits = self._gone = False
        self._early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of it.
        self.transport = typing.cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        if self.other.transport is None:
            return
        self.say(bytes(self._early))
        self._early.clear()
        if self.other._gone:  # noqa: SLF001 - the same class
            self.close()
        elif self.other._ended:  # noqa: SLF001 - the same class
            self.transport.write_eof()
        elif self.other._waits:  # noqa: SLF001 - the same class
            self.other.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._observe(data)
        if self.other.transport is None:
            # uvloop takes no pause before the first bytes, so these may be early; there are no more of them.
            self.other._early += data  # noqa: SLF001 - the same class
            self._wait()
        else:
            self.other.say(data)
        self._link.passed()

    def eof_received(self) -> bool:
        self._ended = True
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.write_eof()
        if self.other._ended:  # noqa: SLF001 - the same class
            self.close()
            self.other.close()
        return True

    def _wait(self) -> None:
        if self.transport is not None and not self._waits:
            self._waits = True
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        if exc is None:
            self.other.close()
        else:
            self.other.abort()
        self._link.lost()

    def say(self, data: bytes) -> None:
        if data and self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """After what is buffered has been written."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            with contextlib.suppress(OSError):
                self.transport.abort()
