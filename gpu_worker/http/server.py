"""The listener of an HTTP front: owns its connections, sweeps those whose time is up, drains.

Must never know the routes: an Application does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from typing import Protocol

import structlog

from gpu_worker.http import limits as http_limits
from gpu_worker.http import messages, protocol
from gpu_worker.wire import intake as wire_intake

_QUIET_S, _LOOK_S = 0.25, 0.05
# Who asks more often than that hears with an answer that the connection ends, which no client can take for a failure.
_IDLE_S = 1.0

log = structlog.get_logger(__name__)


class Application(Protocol):
    """What answers the requests of a server."""

    def leaving(self, target: bytes) -> bool:
        """Whether clients that asked for `target` are to go elsewhere."""
        ...

    def parallel(self, request: messages.Request) -> bool:
        """Whether `request` may run beside others of its connection."""
        ...

    def handle(self, request: messages.Request) -> None:
        """Sees to it that `request.answer` is called, now or later."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen; port 0 takes a free one."""

    address: str
    port: int
    tls: ssl.SSLContext | None = None
    reuse_port: bool = False


class Server:
    """One listening socket and its connections."""

    def __init__(
        self, application: Application, intake: wire_intake.Intake, limits: http_limits.Limits | None = None
    ) -> None:
        self.limits = limits or http_limits.Limits()
        self.intake = intake
        self.secure = False
        self.draining = False
        self._application = application
        self._connections: set[protocol.Connection] = set()
        self._empty = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listen: Listen) -> int:
        """Listens; returns the bound port. OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        self.secure = listen.tls is not None
        self._listener = await loop.create_server(
            lambda: protocol.Connection(self),
            listen.address,
            listen.port,
            ssl=listen.tls,
            ssl_handshake_timeout=self.limits.head_timeout_s if listen.tls else None,
            backlog=1024,
            reuse_port=listen.reuse_port or None,
        )
        self._sweep()
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    def parallel(self, request: messages.Request) -> bool:
        return self._application.parallel(request)

    def handle(self, request: messages.Request) -> None:
        """Never raises: what a handler lets through is logged and answered as an internal error."""
        try:
            self._application.handle(request)
        except Exception:
            log.exception("http.handler_failed", method=request.method.decode(), target=repr(request.target[:200]))
            request.answer(messages.refusal(500, "Internal error; the server's log says more"))

    def joined(self, connection: protocol.Connection) -> bool:
        """Notes a connection; False when there are too many."""
        self._connections.add(connection)
        self._empty.clear()
        return len(self._connections) <= self.limits.connections

    def left(self, connection: protocol.Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def drain(self) -> None:
        """Stops accepting; each connection ends with its next answer."""
        self.draining = True
        if self._listener:
            self._listener.close()

    async def quiet(self) -> None:
        """Returns once every connection has gone, or none has asked anything for a moment."""
        quiet_since_s = None
        loop = asyncio.get_running_loop()
        while self._connections:
            if not all(connection.idle for connection in self._connections):
                quiet_since_s = None
            elif quiet_since_s is None:
                quiet_since_s = loop.time()
            elif loop.time() - quiet_since_s >= _QUIET_S:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._empty.wait()

    async def close(self) -> None:
        """Ends what is idle at once, the rest when its last bytes are out or `linger_s` is over."""
        self.drain()
        for connection in tuple(self._connections):
            connection.end_when_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.linger_s if self._connections else 0):
                await self._empty.wait()
        for connection in tuple(self._connections):
            connection.abort()
        if self._sweeper:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in tuple(self._connections):
            if connection.deadline <= now:
                connection.expire()
            elif connection.idle_since_s + _IDLE_S <= now and self._application.leaving(connection.target):
                connection.end_when_idle()
        self._sweeper = loop.call_later(self.limits.sweep_s, self._sweep)
