"""Asks a V2 server through grpcio: ``python python_client.py sync|aio SCENARIO ADDRESS``.

Ends with 1 and says why when the server does not answer as it should. A program of its own, as every client is.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.inference.v2 import predict_pb2, predict_pb2_grpc

PATIENCE_S = 60.0
SHORT_S = 0.05
NAME = "модель 名前 ☃ 100%"
UNKNOWN = f"Request for unknown model: '{NAME}' is not found"
METADATA = (
    ("triton_grpc_error", "true"),
    ("some-bin", bytes(range(256))),
    ("some-bin", b""),
    ("some-text", 'a, b;c="d"'),
    *((f"name-{index}", "value") for index in range(40)),
)
BIG = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
PINGS = [
    *BIG,
    ("grpc.keepalive_time_ms", 50),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
OWN = ("grpc.use_local_subchannel_pool", 1)


def infer(model: str, identifier: str, raw: bytes, datatype: str = "FP32") -> predict_pb2.ModelInferRequest:
    message = predict_pb2.ModelInferRequest(model_name=model, id=identifier, raw_input_contents=[raw])
    message.inputs.add(name="INPUT", datatype=datatype, shape=[1, 4])
    return message


def row(number: float) -> bytes:
    return np.array([number, 1, 2, 3], "<f4").tobytes()


def text(size: int) -> bytes:
    big = (np.arange(size, dtype=np.uint32) ** 2 >> 20 & 0x7F).astype(np.uint8).tobytes()
    return b"".join(len(each).to_bytes(4, "little") + each for each in (big, b"", b"x", "é".encode()))


def check_echo(answer: predict_pb2.ModelInferResponse, identifier: str, raw: bytes) -> None:
    assert answer.id == identifier, answer.id
    assert list(answer.raw_output_contents) == [raw], f"{len(raw)} bytes came back as others"


def stream_requests(count: int, wrong: int) -> Iterator[predict_pb2.ModelInferRequest]:
    for index in range(count):
        yield infer("nope" if index == wrong else "ident", str(index), row(index))


def check_streamed(answers: list[Any], wrong: int) -> None:
    assert [answer.infer_response.id for answer in answers] == [str(index) for index in range(len(answers))]
    failed = [index for index, answer in enumerate(answers) if answer.error_message]
    assert failed == [wrong], failed
    for index, answer in enumerate(answers):
        if index != wrong:
            assert list(answer.infer_response.raw_output_contents) == [row(index)], index


def check_status(error: Any, code: grpc.StatusCode, details: str | None = None) -> None:
    assert error.code() is code, (error.code(), error.details())
    assert details in (None, error.details()), error.details()


class Sync:
    """The blocking API."""

    def __init__(self, address: str) -> None:
        self._address = address

    @contextlib.contextmanager
    def open(self, options: Any = BIG, **more: Any) -> Iterator[Any]:
        with grpc.insecure_channel(self._address, options=[*options, OWN], **more) as channel:
            yield predict_pb2_grpc.GRPCInferenceServiceStub(channel)

    def echo(self, stub: Any, number: int, **more: Any) -> None:
        asked = infer("ident", str(number), row(number))
        check_echo(stub.ModelInfer(asked, timeout=PATIENCE_S, **more), str(number), row(number))

    def unary(self) -> None:
        with self.open() as stub:
            assert stub.ServerLive(predict_pb2.ServerLiveRequest()).live
            assert stub.ModelMetadata(predict_pb2.ModelMetadataRequest(name="ident")).name == "ident"
            self.echo(stub, 7)

    def stream(self) -> None:
        with self.open() as stub:
            check_streamed(list(stub.ModelStreamInfer(stream_requests(300, 150), timeout=PATIENCE_S)), 150)

    def metadata(self) -> None:
        with self.open() as stub:
            self.echo(stub, 1, metadata=METADATA)
            asked = iter([infer("nope", "1", row(1))])
            check_status(_raised(lambda: list(stub.ModelStreamInfer(asked, metadata=METADATA))), NOT_FOUND)

    def deadline(self) -> None:
        with self.open() as stub:
            for call in [stub.ModelInfer.future(infer("slow", "", row(0)), timeout=SHORT_S) for _ in range(8)]:
                check_status(_raised(call.result), grpc.StatusCode.DEADLINE_EXCEEDED)
            self.echo(stub, 1)

    def cancel(self) -> None:
        with self.open() as stub:
            calls = [stub.ModelInfer.future(infer("slow", "", row(0))) for _ in range(8)]
            self.echo(stub, 1)
            for call in calls:
                call.cancel()
            for call in calls:
                assert call.code() is grpc.StatusCode.CANCELLED, call.code()
            self.echo(stub, 2)

    def large(self) -> None:
        with self.open() as stub:
            wire = text(2**23)
            calls = [stub.ModelInfer.future(infer("text", "1", wire, "BYTES"), timeout=PATIENCE_S) for _ in range(3)]
            for call in calls:
                check_echo(call.result(), "1", wire)

    def gzip(self) -> None:
        """Needs a server that packs its answers."""
        wire = text(2**20)
        with self.open(compression=grpc.Compression.Gzip) as stub:
            answer, call = stub.ModelInfer.with_call(infer("text", "1", wire, "BYTES"), timeout=PATIENCE_S)
            check_echo(answer, "1", wire)
            assert call.code() is grpc.StatusCode.OK
            self.echo(stub, 1)

    def parallel(self) -> None:
        with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(24) as threads:
            stubs = [stack.enter_context(self.open()) for _ in range(3)]
            list(threads.map(lambda number: self.echo(stubs[number % 3], number), range(1500)))

    def keepalive(self) -> None:
        """Pings many times while slow calls run one after the other, on one connection."""
        with self.open(PINGS) as stub:
            for _ in range(2):
                check_echo(stub.ModelInfer(infer("slow", "1", row(0)), timeout=PATIENCE_S), "1", row(0))

    def load(self) -> None:
        """Calls until standard input ends."""
        over = threading.Event()
        with self.open() as stub, concurrent.futures.ThreadPoolExecutor(8) as threads:
            callers = [threads.submit(self._call_until, over, stub) for _ in range(8)]
            sys.stdin.read()
            over.set()
            for caller in callers:
                caller.result()

    def _call_until(self, over: threading.Event, stub: Any) -> None:
        number = 0
        while not over.is_set():
            self.echo(stub, number)
            number += 1

    def error(self) -> None:
        with self.open() as stub:
            failed = _raised(lambda: stub.ModelInfer(infer(NAME, "", row(0)), timeout=PATIENCE_S))
            check_status(failed, NOT_FOUND, UNKNOWN)
        with grpc.insecure_channel(self._address) as channel:
            nowhere: Any = channel.unary_unary("/nowhere.Service/None")
            check_status(_raised(lambda: nowhere(b"", timeout=PATIENCE_S)), grpc.StatusCode.UNIMPLEMENTED)

    def health(self) -> None:
        with grpc.insecure_channel(self._address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest()).status == SERVING
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            assert next(watch).status == SERVING
            watch.cancel()


class Aio:
    """The asynchronous API."""

    def __init__(self, address: str) -> None:
        self._address = address

    @contextlib.asynccontextmanager
    async def open(self, options: Any = BIG, **more: Any) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(self._address, options=[*options, OWN], **more) as channel:
            yield predict_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def echo(self, stub: Any, number: int, **more: Any) -> None:
        asked = infer("ident", str(number), row(number))
        check_echo(await stub.ModelInfer(asked, timeout=PATIENCE_S, **more), str(number), row(number))

    async def unary(self) -> None:
        async with self.open() as stub:
            assert (await stub.ServerLive(predict_pb2.ServerLiveRequest())).live
            assert (await stub.ModelMetadata(predict_pb2.ModelMetadataRequest(name="ident"))).name == "ident"
            await self.echo(stub, 7)

    async def stream(self) -> None:
        async with self.open() as stub:
            call = stub.ModelStreamInfer(stream_requests(300, 150), timeout=PATIENCE_S)
            check_streamed([answer async for answer in call], 150)

    async def metadata(self) -> None:
        async with self.open() as stub:
            await self.echo(stub, 1, metadata=METADATA)
            call = stub.ModelStreamInfer(iter([infer("nope", "1", row(1))]), metadata=METADATA)
            check_status(await _failed(call.read()), NOT_FOUND)

    async def deadline(self) -> None:
        async with self.open() as stub:
            calls = [stub.ModelInfer(infer("slow", "", row(0)), timeout=SHORT_S) for _ in range(8)]
            for call in calls:
                check_status(await _failed(call), grpc.StatusCode.DEADLINE_EXCEEDED)
            await self.echo(stub, 1)

    async def cancel(self) -> None:
        async with self.open() as stub:
            calls = [stub.ModelInfer(infer("slow", "", row(0))) for _ in range(8)]
            await self.echo(stub, 1)
            for call in calls:
                call.cancel()
            for call in calls:
                assert await call.code() is grpc.StatusCode.CANCELLED
            await self.echo(stub, 2)

    async def large(self) -> None:
        async with self.open() as stub:
            wire = text(2**23)
            calls = [stub.ModelInfer(infer("text", "1", wire, "BYTES"), timeout=PATIENCE_S) for _ in range(3)]
            for call in calls:
                check_echo(await call, "1", wire)

    async def gzip(self) -> None:
        """Needs a server that packs its answers."""
        wire = text(2**20)
        async with self.open(compression=grpc.Compression.Gzip) as stub:
            check_echo(await stub.ModelInfer(infer("text", "1", wire, "BYTES"), timeout=PATIENCE_S), "1", wire)
            await self.echo(stub, 1)

    async def parallel(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stubs = [await stack.enter_async_context(self.open()) for _ in range(3)]
            await asyncio.gather(*(self.echo(stubs[number % 3], number) for number in range(1500)))

    async def keepalive(self) -> None:
        """Pings many times while slow calls run one after the other, on one connection."""
        async with self.open(PINGS) as stub:
            for _ in range(2):
                check_echo(await stub.ModelInfer(infer("slow", "1", row(0)), timeout=PATIENCE_S), "1", row(0))

    async def load(self) -> None:
        """Calls until standard input ends."""
        over = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
        async with self.open() as stub:
            await asyncio.gather(*(self._call_until(over, stub) for _ in range(8)))

    async def _call_until(self, over: asyncio.Future[str], stub: Any) -> None:
        number = 0
        while not over.done():
            await self.echo(stub, number)
            number += 1

    async def error(self) -> None:
        async with self.open() as stub:
            call = stub.ModelInfer(infer(NAME, "", row(0)), timeout=PATIENCE_S)
            check_status(await _failed(call), NOT_FOUND, UNKNOWN)
        async with grpc.aio.insecure_channel(self._address) as channel:
            nowhere: Any = channel.unary_unary("/nowhere.Service/None")
            check_status(await _failed(nowhere(b"", timeout=PATIENCE_S)), grpc.StatusCode.UNIMPLEMENTED)

    async def health(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            assert (await watch.read()).status == SERVING
            watch.cancel()


NOT_FOUND = grpc.StatusCode.NOT_FOUND
SERVING = health_pb2.HealthCheckResponse.SERVING


def _raised(call: Callable[[], object]) -> grpc.RpcError:
    try:
        found = call()
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"no error, but {found}")


async def _failed(call: Any) -> grpc.RpcError:
    try:
        found = await call
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"no error, but {found}")


def main(kind: str, scenario: str, address: str) -> None:
    if kind == "aio":
        asyncio.run(getattr(Aio(address), scenario)())
    else:
        getattr(Sync(address), scenario)()
        # A call that is destroyed while the interpreter ends can wait for ever for a lock of a thread that is gone.
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
