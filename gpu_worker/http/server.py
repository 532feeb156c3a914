"""The listener of an HTTP front: owns its connections, sweeps those whose time is up, drains.

Must never know the routes: an Application does.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from gpu_worker import listener
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


class Server(listener.Listener["protocol.Connection"]):
    """One listening socket and its connections."""

    def __init__(
        self, application: Application, intake: wire_intake.Intake, limits: http_limits.Limits | None = None
    ) -> None:
        self.limits = limits or http_limits.Limits()
        super().__init__(self.limits)
        self.intake = intake
        self.secure = False
        self.draining = False
        self._application = application
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listen: listener.Listen) -> int:
        """Listens; returns the bound port. OSError when the address cannot be had."""
        self.secure = listen.tls is not None
        port = await self.bind(listen, lambda: protocol.Connection(self), self.limits.head_timeout_s)
        self._sweep()
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

    def drain(self) -> None:
        """Stops accepting; each connection ends with its next answer."""
        self.draining = True
        self.stop_accepting()

    async def quiet(self) -> None:
        """Returns once every connection has gone, or none has asked anything for a moment."""
        quiet_since_s = None
        loop = asyncio.get_running_loop()
        while self.connections:
            if not all(connection.idle for connection in self.connections):
                quiet_since_s = None
            elif quiet_since_s is None:
                quiet_since_s = loop.time()
            elif loop.time() - quiet_since_s >= _QUIET_S:
                return
            await self.gone(_LOOK_S)

    async def close(self) -> None:
        """Ends what is idle at once, the rest when its last bytes are out or `linger_s` is over."""
        self.drain()
        for connection in tuple(self.connections):
            connection.end_when_idle()
        await self.gone(self.limits.linger_s)
        for connection in tuple(self.connections):
            connection.abort()
        if self._sweeper:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in tuple(self.connections):
            if connection.deadline <= now:
                connection.expire()
            elif connection.idle_since_s + _IDLE_S <= now and self._application.leaving(connection.target):
                connection.end_when_idle()
        self._sweeper = loop.call_later(self.limits.sweep_s, self._sweep)
