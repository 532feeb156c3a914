"""Connections of clients that cannot reach the workers, through this server: bytes in order, both ways.

Bounded in number, in what is held of each, and in how long nothing may pass. Where one leads is decided by what the
control plane itself knows of the lease, never by what a client or a worker says.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import enum
from collections.abc import AsyncIterator, Iterator, Sequence

import structlog

from tms_server.fleet import desired
from tms_server.model import caller as caller_module
from tms_server.model import errors, ids, lease, resources
from tms_server.ports import store
from tms_server.services import finding, parts

log = structlog.get_logger(__name__)
CHUNK_BYTES = 64 * 1024


class Port(enum.StrEnum):
    """Which of an endpoint's ports."""

    HTTP = "http"
    GRPC = "grpc"
    METRICS = "metrics"

    def of(self, endpoint: resources.Endpoint) -> int:
        """Its number."""
        numbers = {Port.HTTP: endpoint.http_port, Port.GRPC: endpoint.grpc_port, Port.METRICS: endpoint.metrics_port}
        return numbers[self]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """`most` tunnels at once, of which `most_each` of one namespace.

    Seconds for a connection to come about, for the worker or the client to take bytes, and without any byte.
    """

    most: int = 256
    most_each: int = 64
    connect_s: float = 5.0
    send_s: float = 60.0
    idle_s: float = 900.0


class Tunnel:
    """One connection. One task may send while another receives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bounds: Bounds) -> None:
        self._reader = reader
        self._writer = writer
        self._bounds = bounds
        self._failure: errors.TmsError | None = None
        self._used_at = asyncio.get_running_loop().time()

    async def send(self, data: bytes) -> None:
        """Returns once there is room for more; InvalidField above `CHUNK_BYTES`, Unavailable when it cannot go on."""
        if len(data) > CHUNK_BYTES:
            raise errors.InvalidField("data", f"send at most {CHUNK_BYTES} bytes in one message")
        self._used_at = asyncio.get_running_loop().time()
        try:
            self._writer.write(data)
            async with asyncio.timeout(self._bounds.send_s):
                await self._writer.drain()
        except TimeoutError:
            raise errors.Unavailable(f"the worker took nothing for {self._bounds.send_s:g} s") from None
        except OSError as failure:
            raise errors.Unavailable(f"the connection to the worker broke: {failure}") from failure

    def finish(self) -> None:
        """Nothing more is sent; what comes back may still be received."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def fail(self, failure: errors.TmsError) -> None:
        """Ends it; who receives is told why."""
        self._failure = self._failure or failure
        self._writer.transport.abort()

    @contextlib.contextmanager
    def giving(self) -> Iterator[None]:
        """While the client takes what was received. One that does not in time is cut off, as if it had gone."""
        timer = asyncio.get_running_loop().call_later(self._bounds.send_s, self._cut, asyncio.current_task())
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self, handler: asyncio.Task[object] | None) -> None:
        log.info("tunnel.not_taken", within_s=self._bounds.send_s)
        self.fail(errors.Unavailable(f"the client took nothing for {self._bounds.send_s:g} s"))
        if handler is not None:
            handler.cancel()

    async def receive(self) -> bytes:
        """What came, at most `CHUNK_BYTES`; empty at the end."""
        while True:
            try:
                async with asyncio.timeout(self._bounds.idle_s):
                    data = await self._reader.read(CHUNK_BYTES)
            except TimeoutError:
                self._check_idle()
                continue
            except OSError as failure:
                raise self._failure or errors.Unavailable(f"the connection to the worker broke: {failure}") from failure
            if self._failure is not None:
                raise self._failure
            self._used_at = asyncio.get_running_loop().time()
            return data

    def _check_idle(self) -> None:
        if asyncio.get_running_loop().time() - self._used_at >= self._bounds.idle_s:
            raise errors.Unavailable(f"nothing passed for {self._bounds.idle_s:g} s; connect again")


class Tunnels:
    """The use case of reaching a lease through the server."""

    def __init__(self, parts_: parts.Parts, bounds: Bounds | None = None) -> None:
        self._parts = parts_
        self._bounds = bounds or Bounds()
        self._open: collections.Counter[ids.Namespace] = collections.Counter()

    @contextlib.asynccontextmanager
    async def open(
        self, caller: caller_module.Caller, namespace: ids.Namespace, text: str, port: Port
    ) -> AsyncIterator[Tunnel]:
        """A connection to an ACTIVE lease, closed at the end of the context.

        FailedPrecondition for a lease that is not ACTIVE, ResourceExhausted when there are too many, Unavailable when
        no worker answers.
        """
        self._check_number(namespace)
        self._open[namespace] += 1
        try:
            places = await self._places(namespace, text)
            reader, writer = await self._connect(places, port)
            log.info("tunnel.opened", caller=caller.name, lease=text, port=port)
            try:
                yield Tunnel(reader, writer, self._bounds)
            finally:
                writer.transport.abort()
                log.info("tunnel.closed", lease=text)
        finally:
            self._open[namespace] -= 1
            self._open += collections.Counter()  # drops what is zero

    def _check_number(self, namespace: ids.Namespace) -> None:
        own, all_ = self._open[namespace], self._open.total()
        if own >= self._bounds.most_each or all_ >= self._bounds.most:
            raise errors.ResourceExhausted(
                f"{own} tunnels of namespace {namespace} are open and {all_} in all, at most {self._bounds.most_each} and"
                f" {self._bounds.most} may be; close some, or reach the workers directly"
            )

    async def _places(self, namespace: ids.Namespace, text: str) -> Sequence[resources.Endpoint]:
        """The lease's own address, then its workers' as the backend knows them."""

        def work(reader: store.Reader) -> tuple[lease.Lease, resources.Endpoint | None, list[ids.GroupId]]:
            held = finding.a_lease(reader, namespace, text)
            if held.state is not lease.LeaseState.ACTIVE:
                raise errors.FailedPrecondition(f"lease {held.id} is {held.state}; only an ACTIVE one can be reached")
            booked = [each.group_id for each in reader.assignments(held.id) if not each.draining]
            return held, reader.get_endpoint(desired.lease_owner(held.id)), booked

        held, own, booked = await self._parts.store.read(work)
        workers = [each for group_id in booked for each in self._parts.live.workers(group_id)]
        led = [each for each in workers if held.id in self._parts.backend.routed(each)]
        replicas = [self._parts.live.replica(each) for each in led]
        known = [own, *(each.endpoint for each in replicas if each is not None)]
        return [each for each in known if each is not None]

    async def _connect(
        self, places: Sequence[resources.Endpoint], port: Port
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        why = "it has no address yet"
        for place in places:
            try:
                async with asyncio.timeout(self._bounds.connect_s):
                    return await asyncio.open_connection(place.host, port.of(place), limit=CHUNK_BYTES)
            except TimeoutError:
                why = f"{place.host} does not answer"
            except OSError as failure:
                why = str(failure)
        raise errors.Unavailable(f"no worker of the lease can be reached: {why}")
