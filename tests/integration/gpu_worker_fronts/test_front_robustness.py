"""Clients that misbehave, over real sockets: whatever they do, others are served and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from gpu_worker.http import limits as http_limits
from protos.inference.v2 import predict_pb2, predict_pb2_grpc
from tests.support import onnx_models

from . import raw_requests
from .conftest import WIDE_S, Front, Launch, Serve, Worker, _tick

CUTS = 12
MANY = 200
KINDS = ("http", "grpcio", "native")
_RESET = struct.pack("ii", 1, 0)
_MEBIBYTE = 2**20


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def frontend(kind: str) -> str:
    return "native" if kind == "http" else kind


def made(kind: str) -> Callable[..., bytes]:
    return raw_requests.http if kind == "http" else raw_requests.grpc


def port_of(kind: str, worker: Worker) -> int:
    return worker.ports["http" if kind == "http" else "grpc"]


@contextlib.asynccontextmanager
async def connected(port: int, count: int = 1) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Connections on which nobody reads beyond a few bytes."""
    opened = [await asyncio.open_connection("127.0.0.1", port, limit=2**10) for _ in range(count)]
    try:
        yield [writer for _reader, writer in opened]
    finally:
        for _reader, writer in opened:
            writer.transport.abort()


async def drop(port: int, data: bytes, *, rudely: bool) -> None:
    """Sends this much and goes, with a reset where it is rude."""
    _reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
    if rudely:
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.write(data)
    with contextlib.suppress(OSError):
        await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WIDE_S):
        while not holds():
            await _tick()


def whole(kind: str, port: int, model: str = "ident", number: float = 1.0) -> Any:
    """An ordinary request and its answer: bytes, or the words of an error."""
    data = np.full(4, number, "<f4").tobytes()
    return _over_http(port, model, number) if kind == "http" else _over_grpc(port, model, data)


async def _over_http(port: int, model: str, number: float) -> Any:
    body = json.dumps({"inputs": [{"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "data": [number] * 4}]})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write((head + body).encode())
    async with asyncio.timeout(WIDE_S):
        answer = await reader.read()
    writer.close()
    found = json.loads(answer.partition(b"\r\n\r\n")[2])
    return np.array(found["outputs"][0]["data"], "<f4").tobytes() if "outputs" in found else found["error"]


async def _over_grpc(port: int, model: str, data: bytes) -> Any:
    message = predict_pb2.ModelInferRequest(model_name=model, raw_input_contents=[data])
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 4])
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            answer = await stub.ModelInfer(message, timeout=WIDE_S)
        except grpc.aio.AioRpcError as error:
            return error.details()
    return answer.raw_output_contents[0]


ONES = np.ones(4, "<f4").tobytes()


class Watched:
    """A worker's descriptors and memory, once it has served for the first time."""

    def __init__(self, worker: Worker) -> None:
        self._process = psutil.Process(worker.process.pid)
        self._files = self._process.num_fds()
        self._memory_bytes = self._process.memory_info().rss

    def grown_bytes(self) -> int:
        return int(self._process.memory_info().rss - self._memory_bytes)

    def has_let_go(self) -> bool:
        """Whether all that came since has gone."""
        return bool(self._process.num_fds() <= self._files)


async def watched(kind: str, worker: Worker) -> Watched:
    for _ in range(5):
        assert await whole(kind, port_of(kind, worker)) == ONES
    found = Watched(worker)
    await until(found.has_let_go)
    return found


@pytest.mark.slow  # a whole worker starts
async def test_connections_dropped_at_every_stage_leave_nothing(kind: str, launch: Launch) -> None:
    worker = await launch()
    port = port_of(kind, worker)
    before = await watched(kind, worker)
    data = made(kind)(elements=64)
    cuts = {len(data) * step // CUTS for step in range(CUTS + 1)}
    for _ in range(4):
        await asyncio.gather(*(drop(port, data[:cut], rudely=rudely) for cut in cuts for rudely in (False, True)))
    assert await whole(kind, port) == ONES
    await until(before.has_let_go)
    assert before.grown_bytes() < 64 * _MEBIBYTE
    assert "failed" not in worker.log()


@pytest.mark.slow  # a whole worker starts
async def test_clients_that_never_read_hold_nobody_up(kind: str, launch: Launch) -> None:
    """Each asks for more than sockets take."""
    worker = await launch()
    port = port_of(kind, worker)
    before = await watched(kind, worker)
    asked = made(kind)(elements=256 if kind == "http" else 64, count=40 if kind == "http" else 3)
    async with connected(port, 16) as clients:
        for client in clients:
            client.write(asked)
        for _ in range(10):
            assert await whole(kind, port) == ONES
        assert before.grown_bytes() < 128 * _MEBIBYTE
    await until(before.has_let_go)


@pytest.mark.slow  # a whole worker starts
async def test_clients_that_write_a_byte_at_a_time_hold_nobody_up(kind: str, launch: Launch) -> None:
    worker = await launch()
    port = port_of(kind, worker)
    before = await watched(kind, worker)
    data = made(kind)()
    async with connected(port, 16) as clients:
        for at in range(150):
            for client in clients:
                client.write(data[at : at + 1])
            await asyncio.gather(*(client.drain() for client in clients))
            if at % 50 == 0:
                assert await whole(kind, port) == ONES
        for client in clients:
            client.write(data[150:])
        assert await whole(kind, port) == ONES
    await until(before.has_let_go)


@pytest.mark.slow  # a whole worker starts
async def test_many_connections_that_say_nothing_are_let_go(kind: str, launch: Launch) -> None:
    worker = await launch()
    port = port_of(kind, worker)
    before = await watched(kind, worker)
    async with connected(port, MANY):
        assert await whole(kind, port) == ONES
    await until(before.has_let_go)
    assert before.grown_bytes() < 64 * _MEBIBYTE


@pytest.mark.slow  # a whole worker starts
async def test_a_model_that_fails_answers_its_error_and_serves_on(kind: str, repository: Any, launch: Launch) -> None:
    """The shape fits what the model says of itself, and fails within the runtime."""
    onnx_models.put(repository, "broken", onnx_models.unfit())
    worker = await launch()
    port = port_of(kind, worker)
    for _ in range(3):
        failure = await whole(kind, port, "broken")
        assert isinstance(failure, str)
        assert "broken" in failure or "onnx" in failure.lower(), failure
        assert await whole(kind, port) == ONES
    assert worker.process.poll() is None


async def test_what_was_held_of_requests_is_given_back(kind: str, serve: Serve) -> None:
    front: Front = await serve()
    port = front.http_port if kind == "http" else front.grpc_port
    data = made(kind)(elements=64)
    for step in range(CUTS + 1):
        for rudely in (False, True):
            await drop(port, data[: len(data) * step // CUTS], rudely=rudely)
    async with connected(port, 3) as clients:
        for client in clients:
            client.write(made(kind)(model="slow"))
        await until(lambda: front.intake._in_flight == len(clients))
    await until(lambda: front.intake._held_bytes == 0 and front.intake._in_flight == 0)
    assert await whole(kind, port) == ONES
    await until(lambda: front.intake._held_bytes == 0 and front.intake._in_flight == 0)


@pytest.mark.parametrize("kind", ["http"], indirect=True)
async def test_bodies_up_to_the_limit_are_taken_and_none_above(kind: str, serve: Serve) -> None:
    body = raw_requests.http(elements=4).partition(b"\r\n\r\n")[2]
    for limit, status in ((len(body), 200), (len(body) - 1, 413)):
        front: Front = await serve(http_limits.Limits(body_bytes=limit))
        client = await front.connect()
        assert (await client.ask(raw_requests.http(elements=4))).status == status
        chunked = b"POST /v2/models/text/infer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(body[at : at + 99]), body[at : at + 99]) for at in range(0, len(body), 99)
        )
        client = await front.connect()
        assert (await client.ask(chunked + chunks + b"0\r\n\r\n")).status == status
        await until(lambda front=front: front.intake._held_bytes == 0)  # type: ignore[misc]  # bound now


@pytest.mark.parametrize("kind", ["http"], indirect=True)
async def test_a_flood_beyond_the_limit_is_turned_away_and_what_is_there_is_served(kind: str, serve: Serve) -> None:
    front: Front = await serve(http_limits.Limits(connections=20, linger_s=0.1))
    clients = [await front.connect() for _ in range(20)]
    for client in clients:
        assert (await client.ask(raw_requests.http())).status == 200
    for _ in range(30):
        turned = await front.connect()
        (answer,) = await turned.answers(1)
        assert answer.status == 503
        assert await turned.ended()
    assert (await clients[0].ask(raw_requests.http())).status == 200
    clients.pop().writer.close()
    await until(lambda: len(front.http.connections) == 19)
    again = await front.connect()
    assert (await again.ask(raw_requests.http())).status == 200
