"""Shared memory over both fronts: registered, used, refused where clients may not."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import grpc
import numpy as np
import pytest

from gpu_worker.wire import rules as wire_rules
from gpu_worker.wire import sharing
from protos.inference.v2 import predict_pb2, predict_pb2_grpc
from tests.support import shared_objects

DATA = np.array([1, 2, 3, 4], "<f4").tobytes()
CLOSED = wire_rules.Rules(sharing=sharing.Sharing(allowed=False))


def request(verb: str, path: str, body: Any = None) -> bytes:
    raw = b"" if body is None else json.dumps(body).encode()
    return f"{verb} {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw


def place(offset: int) -> dict[str, Any]:
    return {"shared_memory_region": "r", "shared_memory_offset": offset, "shared_memory_byte_size": 16}


def shared(read: int, write: int) -> bytes:
    tensor = {"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "parameters": place(read)}
    output = {"name": "OUTPUT", "parameters": place(write)}
    return request("POST", "/v2/models/ident/infer", {"inputs": [tensor], "outputs": [output]})


async def test_regions_over_http(serve: Any) -> None:
    front = await serve()
    client = await front.connect()
    with shared_objects.made(64) as path:
        path.write_bytes(DATA + bytes(48))
        system = "/v2/systemsharedmemory"
        body = {"key": shared_objects.key(path), "offset": 0, "byte_size": 64}
        assert (await client.ask(request("POST", f"{system}/region/r/register", body))).status == 200
        again = await client.ask(request("POST", f"{system}/region/r/register", body))
        assert (again.status, again.json()) == (400, {"error": "shared memory region 'r' already in manager"})
        listed = [{"name": "r", **body}]
        assert (await client.ask(request("GET", f"{system}/status"))).json() == listed
        assert (await client.ask(request("GET", f"{system}/region/r/status"))).json() == listed
        assert (await client.ask(request("GET", "/v2/cudasharedmemory/status"))).json() == []
        wrong = await client.ask(request("GET", "/v2/cudasharedmemory/region/r/status"))
        assert (wrong.status, "not CUDA shared memory" in wrong.json()["error"]) == (404, True)
        answer = (await client.ask(shared(0, 32))).json()
        assert answer["outputs"] == [{"name": "OUTPUT", "datatype": "FP32", "shape": [1, 4], "parameters": place(32)}]
        assert path.read_bytes()[32:48] == DATA
        assert (await client.ask(request("POST", f"{system}/unregister"))).status == 200
        assert (await client.ask(request("POST", f"{system}/region/r/unregister"))).status == 200
        gone = await client.ask(request("GET", f"{system}/region/r/status"))
        assert (gone.status, "Unable to find" in gone.json()["error"]) == (404, True)
        lost = await client.ask(shared(0, 32))
        assert (lost.status, "Unable to find" in lost.json()["error"]) == (404, True)
        assert front.intake._held_bytes == 0
        assert shared_objects.key(path) not in shared_objects.open_in(os.getpid())


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("system", {"byte_size": 1}, "'key'"),
        ("system", {"key": "/k"}, "'byte_size'"),
        ("system", {"key": "/k", "byte_size": 1, "offset": "x"}, "'offset'"),
        ("system", {"key": "/k", "byte_size": 2**70}, "failed to parse|'byte_size'"),
        ("system", {"key": "/../x", "byte_size": 1}, "Unable to open shared memory region"),
        ("cuda", {"device_id": 0, "byte_size": 1}, "'raw_handle'"),
        ("cuda", {"raw_handle": {"b64": "?"}, "device_id": 0, "byte_size": 1}, "base64"),
        ("cuda", {"raw_handle": {"b64": ""}, "byte_size": 1}, "'device_id'"),
    ],
)
async def test_bodies_that_cannot_be_are_refused(serve: Any, kind: str, body: Any, words: str) -> None:
    client = await (await serve()).connect()
    answer = await client.ask(request("POST", f"/v2/{kind}sharedmemory/region/r/register", body))
    assert answer.status == 400
    assert any(word in answer.json()["error"] for word in words.split("|"))


async def test_without_leave_regions_are_only_listed(serve: Any) -> None:
    front = await serve(rules=CLOSED)
    client = await front.connect()
    assert (await client.ask(request("GET", "/v2/systemsharedmemory/status"))).json() == []
    with shared_objects.made(16) as path:
        body = {"key": shared_objects.key(path), "offset": 0, "byte_size": 16}
        handle = {"raw_handle": {"b64": base64.b64encode(bytes(64)).decode()}, "device_id": 0, "byte_size": 1}
        asked = [
            request("POST", "/v2/systemsharedmemory/region/r/register", body),
            request("POST", "/v2/systemsharedmemory/unregister"),
            request("POST", "/v2/cudasharedmemory/region/r/register", handle),
            shared(0, 0),
        ]
        for raw in asked:
            answer = await client.ask(raw)
            assert (answer.status, "--allow-client-shm=true" in answer.json()["error"]) == (503, True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert not (await stub.SystemSharedMemoryStatus(predict_pb2.SystemSharedMemoryStatusRequest())).regions
        for call in (
            stub.SystemSharedMemoryRegister(predict_pb2.SystemSharedMemoryRegisterRequest(name="r", key="/k")),
            stub.CudaSharedMemoryUnregister(predict_pb2.CudaSharedMemoryUnregisterRequest()),
            stub.ModelInfer(message()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def message() -> predict_pb2.ModelInferRequest:
    asked = predict_pb2.ModelInferRequest(model_name="ident", id="7")
    tensors: tuple[Any, Any] = (
        asked.inputs.add(name="INPUT", datatype="FP32", shape=[1, 4]),
        asked.outputs.add(name="OUTPUT"),
    )
    for tensor, offset in zip(tensors, (0, 32), strict=True):
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_offset"].int64_param = offset
        tensor.parameters["shared_memory_byte_size"].int64_param = 16
    return asked


async def test_regions_over_grpc(serve: Any) -> None:
    front = await serve()
    with shared_objects.made(64) as path:
        path.write_bytes(DATA + bytes(48))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
            stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
            register = predict_pb2.SystemSharedMemoryRegisterRequest(
                name="r", key=shared_objects.key(path), byte_size=64
            )
            await stub.SystemSharedMemoryRegister(register)
            regions = (await stub.SystemSharedMemoryStatus(predict_pb2.SystemSharedMemoryStatusRequest())).regions
            assert {name: (each.name, each.key, each.offset, each.byte_size) for name, each in regions.items()} == {
                "r": ("r", shared_objects.key(path), 0, 64)
            }
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.SystemSharedMemoryRegister(register)
            assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
            answer = await stub.ModelInfer(message())
            assert list(answer.raw_output_contents) == [b""]
            assert answer.outputs[0].parameters["shared_memory_offset"].int64_param == 32
            assert path.read_bytes()[32:48] == DATA

            async def asked() -> Any:
                yield message()

            os.truncate(path, 0)
            (told,) = [each async for each in stub.ModelStreamInfer(asked())]
            assert "truncated" in told.error_message
            await stub.SystemSharedMemoryUnregister(predict_pb2.SystemSharedMemoryUnregisterRequest(name="r"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.SystemSharedMemoryStatus(predict_pb2.SystemSharedMemoryStatusRequest(name="r"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert front.intake._held_bytes == 0


async def test_cuda_regions_over_grpc_are_refused_without_a_handle_or_a_gpu(serve: Any) -> None:
    front = await serve()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CudaSharedMemoryRegister(predict_pb2.CudaSharedMemoryRegisterRequest(name="c", byte_size=1))
        assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT)
        assert not (await stub.CudaSharedMemoryStatus(predict_pb2.CudaSharedMemoryStatusRequest())).regions
        await stub.CudaSharedMemoryUnregister(predict_pb2.CudaSharedMemoryUnregisterRequest(name="c"))
