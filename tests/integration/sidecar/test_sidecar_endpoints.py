from __future__ import annotations

import asyncio
import contextlib
import gc
import pathlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

import grpc
import pytest
import uvloop

from sidecar import endpoints, values

PATIENCE_S = 30
INFER = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Worker:
    """A server whose every connection the test holds in its hands."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[Streams] = asyncio.Queue()
        self._taken: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        self._server.close()
        for writer in self._taken:
            writer.transport.abort()
        await self._server.wait_closed()

    async def take(self) -> Streams:
        async with asyncio.timeout(PATIENCE_S):
            return await self.connections.get()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._taken.append(writer)
        await self.connections.put((reader, writer))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def serving(*models: str, metrics_port: int = 0) -> values.Serving:
    endpoint = values.Endpoint("127.0.0.1", free_port(), free_port(), metrics_port)
    return values.Serving(endpoint, models or ("digits",))


Scenario = Callable[[Worker, endpoints.Endpoints], Awaitable[None]]


def on_both_loops(scenario: Scenario) -> Callable[..., None]:
    """The loop that the sidecar runs on, and the one that defines what loops do."""

    async def whole() -> None:
        async with world() as (worker, forwarder):
            await scenario(worker, forwarder)

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    def test(run: Callable[[Coroutine[None, None, None]], None]) -> None:
        run(whole())

    return test


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[tuple[Worker, endpoints.Endpoints]]:
    """A worker and what forwards to it; no socket may be left in the end."""
    before = open_sockets()
    worker = Worker()
    port = await worker.start()
    forwarder = endpoints.Endpoints(values.Endpoint("127.0.0.1", port, port, port), drain_s=PATIENCE_S)
    try:
        yield worker, forwarder
    finally:
        await forwarder.close()
        await worker.stop()
    await until(lambda: open_sockets() <= before)


def open_sockets() -> int:
    gc.collect()
    found = 0
    for descriptor in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(descriptor.readlink()).startswith("socket:")
    return found


async def until(reached: Callable[[], bool]) -> None:
    """Gives the loop its turns until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not reached():
            await asyncio.to_thread(lambda: None)


async def connect(port: int) -> Streams:
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.open_connection("127.0.0.1", port)


async def bounded(work: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await work


@on_both_loops
async def test_bytes_pass_both_ways_and_half_closes_too(worker: Worker, forwarder: endpoints.Endpoints) -> None:
    wanted = serving(metrics_port=free_port())
    assert forwarder.sync([wanted])
    assert forwarder.opened() == (wanted.endpoint,)

    reader, writer = await connect(wanted.endpoint.metrics_port)
    there_reader, there_writer = await worker.take()
    writer.write(b"question")
    writer.write_eof()
    assert await bounded(there_reader.read()) == b"question"
    there_writer.write(b"answer after the end of the question")
    there_writer.write_eof()

    assert await bounded(reader.read()) == b"answer after the end of the question"
    writer.close()


@on_both_loops
async def test_who_cannot_take_more_stops_the_other(worker: Worker, forwarder: endpoints.Endpoints) -> None:
    wanted = serving(metrics_port=free_port())
    forwarder.sync([wanted])
    reader, writer = await connect(wanted.endpoint.metrics_port)
    _, there_writer = await worker.take()
    total, sent = 64 << 20, 0
    piece = bytes(1 << 20)

    async def pour() -> None:
        nonlocal sent
        while sent < total:
            there_writer.write(piece)
            await there_writer.drain()
            sent += len(piece)

    # The client asks for nothing to be read: `reader` buffers little and then stops its socket.
    pouring = asyncio.ensure_future(pour())
    stuck = -1
    while stuck != sent:
        stuck = sent
        await asyncio.wait([pouring], timeout=1)
    assert sent < total // 2

    got = 0
    while got < total:
        got += len(await bounded(reader.read(1 << 20)))
    await pouring
    writer.close()


@on_both_loops
async def test_it_opens_only_when_all_ports_can_be_bound(worker: Worker, forwarder: endpoints.Endpoints) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        wanted = values.Serving(values.Endpoint("127.0.0.1", free_port(), other.getsockname()[1], 0), ("digits",))

        assert forwarder.sync([wanted])
        assert not forwarder.sync([wanted])

        assert forwarder.opened() == ()
        ((endpoint, why),) = forwarder.unopened().items()
        assert endpoint == wanted.endpoint
        assert "in use" in why
        with pytest.raises(OSError, match=r"refused|Connect"):
            await connect(wanted.endpoint.http_port)
        assert forwarder.sync([])
        assert forwarder.unopened() == {}
        assert forwarder.sync([wanted])
    assert forwarder.sync([wanted])
    assert forwarder.opened() == (wanted.endpoint,)
    assert forwarder.unopened() == {}


@on_both_loops
async def test_two_holders_share_an_address_during_a_move(worker: Worker, forwarder: endpoints.Endpoints) -> None:
    wanted = serving()
    port = forwarder._worker.http_port
    other = endpoints.Endpoints(values.Endpoint("127.0.0.1", port, port, port), drain_s=PATIENCE_S)
    assert forwarder.sync([wanted])
    assert other.sync([wanted])
    forwarder.sync([])

    for _ in range(8):
        reader, writer = await connect(wanted.endpoint.http_port)
        writer.write(INFER)
        there_reader, there_writer = await worker.take()
        assert await bounded(there_reader.readexactly(len(INFER))) == INFER
        there_writer.write(ANSWER)
        assert await bounded(reader.readexactly(len(ANSWER))) == ANSWER
        writer.close()
    await other.close()


@on_both_loops
async def test_closing_lets_a_call_finish_and_takes_no_new_one(worker: Worker, forwarder: endpoints.Endpoints) -> None:
    wanted = serving("digits", "other")
    forwarder.sync([wanted])
    idle_reader, idle_writer = await connect(wanted.endpoint.http_port)
    await worker.take()
    reader, writer = await connect(wanted.endpoint.http_port)
    writer.write(INFER)
    there_reader, there_writer = await worker.take()
    await bounded(there_reader.readexactly(len(INFER)))
    assert forwarder.in_flight() == {"digits": 1}

    forwarder.sync([])
    drained = asyncio.ensure_future(forwarder.drained("other"))

    assert await bounded(idle_reader.read()) == b""
    with pytest.raises(OSError, match=r"refused|Connect"):
        await connect(wanted.endpoint.http_port)
    assert not drained.done()
    assert forwarder.in_flight() == {"digits": 1}
    there_writer.write(ANSWER[:20])
    assert await bounded(reader.readexactly(20)) == ANSWER[:20]
    assert not drained.done()
    there_writer.write(ANSWER[20:])
    assert await bounded(reader.read()) == ANSWER[20:]
    async with asyncio.timeout(PATIENCE_S):
        await drained
    assert forwarder.in_flight() == {}
    for each in (idle_writer, writer):
        each.close()


@on_both_loops
async def test_a_call_that_never_ends_is_cut_at_the_bound(worker: Worker, forwarder: endpoints.Endpoints) -> None:
    port = forwarder._worker.http_port
    impatient = endpoints.Endpoints(values.Endpoint("127.0.0.1", port, port, port), drain_s=1)
    wanted = serving()
    impatient.sync([wanted])
    reader, writer = await connect(wanted.endpoint.http_port)
    writer.write(INFER)
    await worker.take()

    await impatient.close()

    with contextlib.suppress(ConnectionResetError):
        assert await bounded(reader.read()) == b""
    writer.close()


@on_both_loops
async def test_a_reset_on_one_side_reaches_the_other(worker: Worker, forwarder: endpoints.Endpoints) -> None:
    wanted = serving()
    forwarder.sync([wanted])
    _, writer = await connect(wanted.endpoint.http_port)
    writer.write(INFER)
    there_reader, _ = await worker.take()
    await bounded(there_reader.readexactly(len(INFER)))

    # Without lingering the kernel sends a reset, not an end.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

    with contextlib.suppress(ConnectionResetError):
        assert await bounded(there_reader.read()) == b""
    await until(lambda: forwarder.in_flight() == {})


@on_both_loops
async def test_a_worker_that_refuses_ends_the_client(worker: Worker, forwarder: endpoints.Endpoints) -> None:
    dead = free_port()
    forwarding = endpoints.Endpoints(values.Endpoint("127.0.0.1", dead, dead, dead), drain_s=PATIENCE_S)
    wanted = serving()
    forwarding.sync([wanted])

    reader, writer = await connect(wanted.endpoint.http_port)

    with contextlib.suppress(ConnectionResetError):
        assert await bounded(reader.read()) == b""
    writer.close()
    await forwarding.close()


@on_both_loops
async def test_a_worker_that_speaks_first_and_goes_is_heard(worker: Worker, forwarder: endpoints.Endpoints) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome and goodbye")
        writer.close()

    rude = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = rude.sockets[0].getsockname()[1]
    forwarding = endpoints.Endpoints(values.Endpoint("127.0.0.1", port, port, port), drain_s=PATIENCE_S)
    wanted = serving(metrics_port=free_port())
    forwarding.sync([wanted])

    for _ in range(20):
        reader, writer = await connect(wanted.endpoint.metrics_port)
        assert await bounded(reader.read()) == b"welcome and goodbye"
        writer.close()
    await forwarding.close()
    rude.close()
    await rude.wait_closed()


@on_both_loops
async def test_a_real_grpc_call_counts_and_its_idle_channel_does_not(
    worker: Worker, forwarder: endpoints.Endpoints
) -> None:
    """grpc itself on both ends, so that its own frames between calls are looked at."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        begun.set()
        await go_on.wait()
        return request * 100_000

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("s", {"m": grpc.unary_unary_rpc_method_handler(answer)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    forwarding = endpoints.Endpoints(values.Endpoint("127.0.0.1", port, port, port), drain_s=PATIENCE_S)
    wanted = serving("a", "b")
    forwarding.sync([wanted])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{wanted.endpoint.grpc_port}") as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/s/m")
        call = method(b"0123456789")
        await begun.wait()
        assert forwarding.in_flight() == {"a": 1, "b": 1}
        forwarding.sync([])
        go_on.set()
        assert len(await call) == 1_000_000
        async with asyncio.timeout(PATIENCE_S):
            await forwarding.drained("a")

        forwarding.sync([wanted])
        assert len(await method(b"1")) == 100_000
        await until(lambda: forwarding.in_flight() == {})
    await forwarding.close()
    await server.stop(None)
