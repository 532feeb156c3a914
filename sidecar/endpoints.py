"""The stable addresses of leases and names: listeners that forward to the worker.

Decides when an address takes connections: while every model it names is ready. Addresses are bound with SO_REUSEPORT,
so that when a lease moves the new holder binds before the old one lets go. Closing takes what the kernel has accepted
already, stops accepting, tells clients to go (GOAWAY on HTTP/2), lets calls under way finish within a bound, and then
cuts. Must never leak a socket, nor report an address that is not bound on all its ports.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import socket
from collections.abc import Callable, Collection, Iterable, Mapping

import structlog

from sidecar import forward, inflight, values

log = structlog.get_logger()

_BACKLOG = 1024
_MOST_LINKS = 4096
_ACCEPTS_AT_ONCE = 256
_REST_S = 0.2


class Endpoints:
    """All addresses of one sidecar."""

    def __init__(self, worker: values.Endpoint, drain_s: float) -> None:
        self._worker = worker
        self._drain_s = drain_s
        self._open: dict[values.Serving, _Address] = {}
        self._closing: dict[asyncio.Task[None], _Address] = {}
        self._unopened: dict[values.Serving, str] = {}

    def opened(self) -> tuple[values.Endpoint, ...]:
        """Those that take connections now."""
        return tuple(serving.endpoint for serving in self._open)

    def unopened(self) -> Mapping[values.Endpoint, str]:
        """Those that are wanted and cannot be had, with the reason."""
        return {serving.endpoint: why for serving, why in self._unopened.items()}

    def in_flight(self) -> Mapping[str, int]:
        """Inferences that may be under way, by served name; one that cannot be told apart counts for all it may be."""
        counts: collections.Counter[str] = collections.Counter()
        for address in (*self._open.values(), *self._closing.values()):
            counts.update(address.uses())
        return counts

    def sync(self, wanted: Collection[values.Serving]) -> bool:
        """Opens and closes until the open ones are the wanted ones; True where that changed anything."""
        before = self.opened(), self.unopened()
        for serving in [each for each in self._open if each not in wanted]:
            self._close(serving)
        for serving in wanted:
            if serving not in self._open:
                self._try_open(serving)
        self._unopened = {serving: why for serving, why in self._unopened.items() if serving in wanted}
        return (self.opened(), self.unopened()) != before

    async def drained(self, model: str) -> None:
        """Returns once no closing address that named the model has a connection left (bounded by the drain time)."""
        closing = [task for task, address in self._closing.items() if model in address.serving.models]
        if closing:
            await asyncio.wait(closing)

    async def close(self) -> None:
        """Closes everything; returns when no socket is left."""
        self.sync(())
        if self._closing:
            await asyncio.wait(self._closing)

    def _try_open(self, serving: values.Serving) -> None:
        address = _Address(serving, self._worker)
        try:
            address.open()
        except (OSError, OverflowError, ValueError) as error:
            address.stop()
            self._refuse(serving, str(error))
        else:
            self._unopened.pop(serving, None)
            self._open[serving] = address
            log.info("endpoint.opened", endpoint=_text(serving.endpoint), models=list(serving.models))

    def _refuse(self, serving: values.Serving, why: str) -> None:
        """Told once: it is tried again at every pass, for as long as somebody else has the address."""
        if self._unopened.get(serving) != why:
            self._unopened[serving] = why
            log.warning("endpoint.unavailable", endpoint=_text(serving.endpoint), error=why)

    def _close(self, serving: values.Serving) -> None:
        address = self._open.pop(serving)
        address.stop()
        task = asyncio.ensure_future(address.drain(self._drain_s))
        self._closing[task] = address
        task.add_done_callback(self._closing.pop)
        log.info("endpoint.closed", endpoint=_text(serving.endpoint), connections=len(address.links))


class _Address:
    """The listeners of one endpoint, and what came through them."""

    def __init__(self, serving: values.Serving, worker: values.Endpoint) -> None:
        self.serving = serving
        self.links: set[forward.Link] = set()
        self._worker = worker
        self._listeners: list[_Listener] = []
        self._empty = asyncio.Event()
        self._connecting: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Binds all ports before the first connection is taken. OSError where one cannot be."""
        here, there = self.serving.endpoint, self._worker
        for port, target, observer in (
            (here.http_port, there.http_port, inflight.Http1),
            (here.grpc_port, there.grpc_port, inflight.Http2),
            (here.metrics_port, there.metrics_port, inflight.Plain),
        ):
            if port:
                self._listeners.append(_Listener(here.host, port, self._taker(target, observer)))
        for listener in self._listeners:
            listener.listen()

    def uses(self) -> Iterable[str]:
        for link in self.links:
            for use in link.observer.uses():
                yield from self.serving.models if use is None else (use,)

    def stop(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def drain(self, bound_s: float) -> None:
        """Lets what is under way finish within the bound, then cuts."""
        if self._connecting:
            await asyncio.wait(self._connecting)
        for link in list(self.links):
            link.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(bound_s):
                await self._gone()
        for link in list(self.links):
            link.abort()
        await self._gone()

    async def _gone(self) -> None:
        while self.links:
            self._empty.clear()
            await self._empty.wait()

    def _taker(self, target: int, observer: Callable[[], inflight.Observer]) -> Callable[[socket.socket], None]:
        def take(client: socket.socket) -> None:
            if len(self.links) >= _MOST_LINKS:
                client.close()
                return
            link = forward.Link(observer(), self._left)
            self.links.add(link)
            task = asyncio.ensure_future(link.run(client, self._worker.host, target))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

        return take

    def _left(self, link: forward.Link) -> None:
        self.links.discard(link)
        self._empty.set()


class _Listener:
    """One bound port."""

    def __init__(self, host: str, port: int, take: Callable[[socket.socket], None]) -> None:
        self._take = take
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind((host, port))
        except BaseException:
            self._socket.close()
            raise

    def listen(self) -> None:
        self._socket.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def _rest(self) -> None:
        """Without descriptors the listener would be readable for ever."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket.fileno())
        loop.call_later(_REST_S, self._resume)
        log.warning("endpoint.no_descriptors")

    def _resume(self) -> None:
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Takes those who are connected already as far as they know, then stops listening."""
        if self._socket.fileno() >= 0:
            self._accept()
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                client, _address = self._socket.accept()
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
                    self._rest()
                # Else nobody waits any more, or one went away while waiting.
                return
            client.setblocking(False)  # noqa: FBT003 - the library's own signature
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._take(client)


def _text(endpoint: values.Endpoint) -> str:
    return f"{endpoint.host}:{endpoint.http_port}:{endpoint.grpc_port}:{endpoint.metrics_port}"
