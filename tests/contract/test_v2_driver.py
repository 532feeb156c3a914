"""What the sidecar's driver needs of a V2 server with the repository extension, on each server there is."""

from __future__ import annotations

import asyncio
import json
import pathlib
from collections.abc import AsyncIterator, Callable, Iterator

import grpc
import numpy as np
import pytest

from protos.inference.v2 import predict_pb2, predict_pb2_grpc
from sidecar import errors, runtime
from tests.support import onnx_models, v2_servers

PATIENCE_S = 60
SERVERS = {"tms-worker": v2_servers.WorkerProcess}
CONFIG = {
    "name": "scaled",
    "backend": "onnxruntime",
    "maxBatchSize": 3,
    "input": [{"name": "INPUT", "dataType": "TYPE_FP32", "dims": [4]}],
    "output": [{"name": "OUTPUT", "dataType": "TYPE_FP32", "dims": [4]}],
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[v2_servers.WorkerProcess]:
    made = SERVERS[request.param](tmp_path)
    made.start()
    onnx_models.put(made.repository, "scaled", onnx_models.scale(2.0))
    yield made
    made.kill()


@pytest.fixture
async def driver(server: v2_servers.WorkerProcess) -> AsyncIterator[runtime.Runtime]:
    made = runtime.Runtime(f"127.0.0.1:{server.endpoint.grpc_port}")
    yield made
    await made.close()


async def until(driver: runtime.Runtime, reached: Callable[[runtime.Index], bool]) -> None:
    """Asks until something is so; each question waits for the server's own answer."""
    async with asyncio.timeout(PATIENCE_S):
        while not reached(await driver.index()):
            pass


async def infer(server: v2_servers.WorkerProcess, values: list[float]) -> list[float]:
    request = predict_pb2.ModelInferRequest(model_name="scaled")
    request.inputs.add(name="INPUT", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(np.array(values, np.float32).tobytes())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.endpoint.grpc_port}") as channel:
        answer = await predict_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    found: list[float] = np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()
    return found


async def test_a_new_server_holds_nothing(driver: runtime.Runtime) -> None:
    assert await driver.index() == runtime.Index(frozenset(), frozenset())
    assert (await driver.statistics()).models == {}


async def test_a_load_returns_when_the_model_serves(server: v2_servers.WorkerProcess, driver: runtime.Runtime) -> None:
    await driver.load("scaled", "")

    assert (await driver.index()).loaded == {"scaled"}
    assert await infer(server, [1, 2, 3, 4]) == [2, 4, 6, 8]


async def test_the_statistics_tell_of_use(server: v2_servers.WorkerProcess, driver: runtime.Runtime) -> None:
    await driver.load("scaled", "")
    unused = (await driver.statistics()).models["scaled"]
    await infer(server, [1, 2, 3, 4])
    await infer(server, [1, 2, 3, 4])

    used = (await driver.statistics()).models["scaled"]

    assert (unused.request_count, unused.inference_count, unused.last_inference_ms) == (0, 0, 0)
    assert (used.request_count, used.inference_count) == (2, 2)
    assert used.last_inference_ms > 0
    assert used.compute_ns > 0


async def test_an_override_replaces_the_configuration(
    server: v2_servers.WorkerProcess, driver: runtime.Runtime
) -> None:
    await driver.load("scaled", json.dumps(CONFIG))

    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.endpoint.grpc_port}") as channel:
        stub = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = await stub.ModelConfig(predict_pb2.ModelConfigRequest(name="scaled"))
    assert answer.config.max_batch_size == 3


async def test_an_unload_ends_with_a_model_that_is_not_in_the_index(driver: runtime.Runtime) -> None:
    await driver.load("scaled", "")

    await driver.unload("scaled")

    await until(driver, lambda index: "scaled" not in index.loaded | index.busy)
    assert "scaled" not in (await driver.statistics()).models
    await driver.load("scaled", "")
    assert (await driver.index()).loaded == {"scaled"}


async def test_unloading_what_was_never_loaded_is_fine(driver: runtime.Runtime) -> None:
    await driver.unload("stranger")


@pytest.mark.parametrize("broken", ["absent", "garbage", "config"])
async def test_a_model_that_cannot_be_loaded_fails_for_good(
    server: v2_servers.WorkerProcess, driver: runtime.Runtime, broken: str
) -> None:
    onnx_models.put(server.repository, "garbage", b"this is no model")
    onnx_models.put(server.repository, "config", onnx_models.scale(1.0), config="max_batch_size: {")

    with pytest.raises(errors.ModelFailed) as caught:
        await driver.load(broken, "")

    assert caught.value.failure.reason == "LoadFailed"
    assert not caught.value.failure.retryable
    assert broken in caught.value.failure.message
    assert (await driver.index()).loaded == frozenset()


async def test_counters_start_anew_with_a_load(server: v2_servers.WorkerProcess, driver: runtime.Runtime) -> None:
    await driver.load("scaled", "")
    await infer(server, [1, 2, 3, 4])
    await driver.unload("scaled")
    await until(driver, lambda index: "scaled" not in index.loaded | index.busy)

    await driver.load("scaled", "")

    assert (await driver.statistics()).models["scaled"].request_count == 0


async def test_a_server_that_died_is_gone_and_one_that_came_back_is_empty(
    server: v2_servers.WorkerProcess, driver: runtime.Runtime
) -> None:
    await driver.load("scaled", "")
    server.kill()

    with pytest.raises(errors.ServerGone) as caught:
        await driver.index()
    with pytest.raises(errors.ModelFailed) as failed:
        await driver.load("scaled", "")
    with pytest.raises(errors.ServerGone):
        await driver.statistics()
    server.start()

    assert caught.value.refused
    assert failed.value.failure.retryable
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                assert (await driver.index()).loaded == frozenset()
            except errors.ServerGone:
                continue
            break
