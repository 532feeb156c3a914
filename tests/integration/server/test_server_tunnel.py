"""Tunnels over the real wire, to a real socket in the place of a lease's address."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import pathlib
from collections.abc import AsyncIterable, AsyncIterator, Collection, Iterable

import grpc
import pytest

from protos.tms.v1 import lease_pb2
from tests.support import server as servers
from tms_server.model import errors, resources
from tms_server.services import tunnels

CHUNK = 64 * 1024


class Far:
    """What a tunnel leads to: answers every byte with itself, and says so once the other side is done."""

    def __init__(self, *, pours: bool = False) -> None:
        """With `pours` it listens to nobody and never ends by itself."""
        self.pours = pours
        self.port = 0
        self.ended = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Task[None]:
        """Kept also when its answer is never begun."""
        self.writers.append(writer)
        return asyncio.ensure_future(self.answer(reader, writer))

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while self.pours and not writer.is_closing():
                writer.write(bytes(CHUNK))
                await writer.drain()
            while data := await reader.read(CHUNK):
                writer.write(data)
                await writer.drain()
            writer.write(b"end")
            await writer.drain()
        writer.close()
        self.ended.set()


@contextlib.asynccontextmanager
async def far_end(*, pours: bool = False) -> AsyncIterator[Far]:
    far = Far(pours=pours)
    answers: list[asyncio.Task[None]] = []
    listening = await asyncio.start_server(lambda *both: answers.append(far.take(*both)), "127.0.0.1", 0)
    far.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield far
    for writer in far.writers:
        writer.transport.abort()
    await asyncio.gather(*answers, return_exceptions=True)


@contextlib.asynccontextmanager
async def leading_to(
    tmp_path: pathlib.Path, far: Far, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[servers.Running, lease_pb2.Lease]]:
    """A server with an ACTIVE lease whose address is the far end's."""
    async with servers.running(tmp_path) as server:
        publish = server.backend.publish

        def here(owner: str, taken: Collection[resources.Endpoint]) -> resources.Endpoint:
            own = resources.Endpoint("127.0.0.1", far.port, far.port, far.port)
            return own if owner.startswith("lease/") and own not in taken else publish(owner, taken)

        monkeypatch.setattr(server.backend, "publish", here)
        yield server, await server.active()


def requests(lease: str, sent: Iterable[bytes], **more: object) -> AsyncIterator[lease_pb2.TunnelRequest]:
    async def made() -> AsyncIterator[lease_pb2.TunnelRequest]:
        yield lease_pb2.TunnelRequest(open=lease_pb2.TunnelOpen(lease=lease, **more))  # type: ignore[arg-type]
        for data in sent:
            yield lease_pb2.TunnelRequest(data=lease_pb2.TunnelData(data=data))

    return made()


async def code_of(call: AsyncIterable[lease_pb2.TunnelData]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in call:
            pass
    return refused.value.code()


async def test_bytes_go_both_ways_in_order_and_each_side_ends_for_itself(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [bytes([number]) * CHUNK for number in range(40)]
    async with far_end() as far, leading_to(tmp_path, far, monkeypatch) as (server, lease):
        got = hashlib.sha256()
        async for message in server.leases.Tunnel(requests(lease.id, sent)):
            assert 0 < len(message.data) <= CHUNK
            got.update(message.data)
        assert got.digest() == hashlib.sha256(b"".join(sent) + b"end").digest()


async def test_a_client_that_goes_ends_the_connection(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with far_end() as far, leading_to(tmp_path, far, monkeypatch) as (server, lease):
        call = server.leases.Tunnel(requests(lease.id, itertools.repeat(b"x")))
        await anext(aiter(call))
        call.cancel()
        async with asyncio.timeout(servers.PATIENCE_S):
            await far.ended.wait()


async def test_a_client_that_takes_nothing_is_cut_off(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "Bounds", functools.partial(tunnels.Bounds, send_s=0.2))
    async with far_end(pours=True) as far, leading_to(tmp_path, far, monkeypatch) as (server, lease):
        call = server.leases.Tunnel(requests(lease.id, []))
        async with asyncio.timeout(servers.PATIENCE_S):
            await far.ended.wait()
        call.cancel()


async def test_there_are_at_most_so_many(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "Bounds", functools.partial(tunnels.Bounds, most_each=1))
    async with far_end() as far, leading_to(tmp_path, far, monkeypatch) as (server, lease):
        first = server.leases.Tunnel(requests(lease.id, itertools.repeat(b"x")))
        await anext(aiter(first))
        assert await code_of(server.leases.Tunnel(requests(lease.id, []))) is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()


async def test_what_is_no_tunnel_is_refused_by_its_field(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with far_end() as far, leading_to(tmp_path, far, monkeypatch) as (server, lease):
        tunnel = server.leases.Tunnel
        silent = lease_pb2.TunnelRequest(data=lease_pb2.TunnelData(data=b"x"))
        bad = grpc.StatusCode.INVALID_ARGUMENT
        assert await code_of(tunnel(iter([silent]))) is bad
        assert await code_of(tunnel(iter([]))) is bad
        assert await code_of(tunnel(requests(lease.id, [], port=99))) is bad
        assert await code_of(tunnel(requests(lease.id, [b"x" * (CHUNK + 1)]))) is bad
        assert await code_of(tunnel(requests("l-none", []))) is grpc.StatusCode.NOT_FOUND
        far.port = 0
        other = await server.create(servers.model("two"))
        await server.release(other.id)
        assert await code_of(tunnel(requests(other.id, []))) is grpc.StatusCode.FAILED_PRECONDITION


async def test_an_address_that_nobody_answers_on_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with far_end() as far:
        pass
    async with leading_to(tmp_path, far, monkeypatch) as (server, lease):
        assert await code_of(server.leases.Tunnel(requests(lease.id, []))) is grpc.StatusCode.UNAVAILABLE


async def test_a_silent_connection_ends_by_itself() -> None:
    async with far_end() as far:
        reader, writer = await asyncio.open_connection("127.0.0.1", far.port)
        tunnel = tunnels.Tunnel(reader, writer, tunnels.Bounds(idle_s=0.01))
        with pytest.raises(errors.Unavailable, match="nothing passed"):
            await tunnel.receive()
        writer.transport.abort()
