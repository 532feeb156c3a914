"""The listening socket of an HTTP front and the set of its connections, whichever version of HTTP they speak.

Decides how a port is had and when there are too many connections. Must never know what is said on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

_BACKLOG = 1024

_Connection = TypeVar("_Connection", bound=asyncio.BaseProtocol)


@dataclasses.dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen; port 0 takes a free one."""

    address: str
    port: int
    tls: ssl.SSLContext | None = None
    reuse_port: bool = False


class Bounds(Protocol):
    """What a front's limits have in common."""

    @property
    def connections(self) -> int: ...


class Listener(Generic[_Connection]):
    """Belongs to one event loop. `connections` are those that live."""

    def __init__(self, bounds: Bounds) -> None:
        self.connections: set[_Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._bounds = bounds
        self._server: asyncio.Server | None = None

    async def gone(self, bound_s: float) -> None:
        """Returns once no connection is left, after `bound_s` seconds at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(bound_s):
                await self._empty.wait()

    async def bind(self, listen: Listen, make: Callable[[], _Connection], handshake_s: float) -> int:
        """Listens; returns the bound port. OSError when the address cannot be had."""
        self._server = await asyncio.get_running_loop().create_server(
            make,
            listen.address,
            listen.port,
            ssl=listen.tls,
            ssl_handshake_timeout=handshake_s if listen.tls else None,
            backlog=_BACKLOG,
            reuse_port=listen.reuse_port or None,
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def joined(self, connection: _Connection) -> bool:
        """Notes a connection; False when there are too many."""
        self.connections.add(connection)
        self._empty.clear()
        return len(self.connections) <= self._bounds.connections

    def left(self, connection: _Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def stop_accepting(self) -> None:
        """Those who are connected stay."""
        if self._server:
            self._server.close()
