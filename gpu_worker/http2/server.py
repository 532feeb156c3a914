"""The listener of an HTTP/2 front: owns its connections, looks after those whose time is up, drains.

Must never know what a request means: an Application does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl

from gpu_worker.http2 import connection as http2_connection
from gpu_worker.http2 import limits as http2_limits
from gpu_worker.http2 import streams

_BACKLOG = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen; port 0 takes a free one."""

    address: str
    port: int
    tls: ssl.SSLContext | None = None
    reuse_port: bool = False


class Server:
    """One listening socket and its connections; made and used on one event loop."""

    def __init__(self, application: streams.Application, limits: http2_limits.Limits | None = None) -> None:
        self.application = application
        self.limits = limits or http2_limits.Limits()
        self.connections: set[http2_connection.Connection] = set()
        self._loop = asyncio.get_running_loop()
        self.clock = self._loop.time
        self.draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listen: Listen) -> int:
        """Listens; returns the bound port. OSError when the address cannot be had."""
        self._listener = await self._loop.create_server(
            lambda: http2_connection.Connection(self),
            listen.address,
            listen.port,
            ssl=listen.tls,
            ssl_handshake_timeout=self.limits.preface_timeout_s if listen.tls else None,
            backlog=_BACKLOG,
            reuse_port=listen.reuse_port or None,
        )
        self._sweep()
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    def joined(self, connection: http2_connection.Connection) -> bool:
        """Notes a connection; False when there are too many."""
        self.connections.add(connection)
        self._empty.clear()
        return len(self.connections) <= self.limits.connections

    def left(self, connection: http2_connection.Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def sweep(self, now_s: float) -> None:
        """Does what is due on each connection at `now_s`."""
        for connection in tuple(self.connections):
            connection.sweep(now_s)

    def drain(self) -> None:
        """Stops accepting, and asks every client to go; one that is still shaking hands goes at once."""
        self.draining = True
        if self._listener:
            self._listener.close()
        for connection in tuple(self.connections):
            connection.go_away()

    async def stop(self, grace_s: float) -> None:
        """Drains; calls in flight have `grace_s` to end before they are cut."""
        self.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        for connection in tuple(self.connections):
            connection.abort()
        if self._sweeper:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        self.sweep(self.clock())
        self._sweeper = self._loop.call_later(self.limits.sweep_s, self._sweep)
