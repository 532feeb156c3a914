"""The listener of an HTTP/2 front: owns its connections, looks after those whose time is up, drains.

Must never know what a request means: an Application does.
"""

from __future__ import annotations

import asyncio

from gpu_worker import listener
from gpu_worker.http2 import connection as http2_connection
from gpu_worker.http2 import limits as http2_limits
from gpu_worker.http2 import streams


class Server(listener.Listener["http2_connection.Connection"]):
    """One listening socket and its connections; made and used on one event loop."""

    def __init__(self, application: streams.Application, limits: http2_limits.Limits | None = None) -> None:
        self.application = application
        self.limits = limits or http2_limits.Limits()
        super().__init__(self.limits)
        self._loop = asyncio.get_running_loop()
        self.clock = self._loop.time
        self.draining = False
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listen: listener.Listen) -> int:
        """Listens; returns the bound port. OSError when the address cannot be had."""
        port = await self.bind(listen, lambda: http2_connection.Connection(self), self.limits.preface_timeout_s)
        self._sweep()
        return port

    def sweep(self, now_s: float) -> None:
        """Does what is due on each connection at `now_s`."""
        for connection in tuple(self.connections):
            connection.sweep(now_s)

    def drain(self) -> None:
        """Stops accepting, and asks every client to go; one that is still shaking hands goes at once."""
        self.draining = True
        self.stop_accepting()
        for connection in tuple(self.connections):
            connection.go_away()

    async def stop(self, grace_s: float) -> None:
        """Drains; calls in flight have `grace_s` to end before they are cut."""
        self.drain()
        await self.gone(grace_s)
        for connection in tuple(self.connections):
            connection.abort()
        if self._sweeper:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        self.sweep(self.clock())
        self._sweeper = self._loop.call_later(self.limits.sweep_s, self._sweep)
