"""Inference from and to shared memory, with real models."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
from typing import Any

import numpy as np
import pytest

from gpu_worker.engine import border
from tests.support import engine_client as client
from tests.support import onnx_models, shared_objects

ROW = np.array([[1, 2, 3, 4]], np.float32)


def place(offset: int, byte_size: int = 16, name: str = "r") -> border.Region:
    return border.Region(name, offset, byte_size)


def prepared(asking: client.Client, model: str, *, read: int, write: int | None = None, **fields: Any) -> Any:
    """A request for INPUT at one offset of region r, and for OUTPUT at another."""
    outputs = [] if write is None else [border.RequestedOutput("OUTPUT", region=place(write, fields.pop("room", 16)))]
    request, answered = asking.prepare(model, ROW, outputs=outputs, **fields)
    request.inputs[0].data, request.inputs[0].region = b"", place(read)
    return request, answered


async def register(asking: client.Client, path: pathlib.Path, size_bytes: int = 64) -> None:
    region = border.SystemRegion("r", shared_objects.key(path), 0, size_bytes)
    await asking.engine.register_system_region(region)


async def test_inputs_come_from_and_outputs_go_to_shared_memory(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "double", onnx_models.scale(2))
    with shared_objects.made(64) as path:
        path.write_bytes(ROW.tobytes() + bytes(48))
        async with client.running(repository) as asking:
            await register(asking, path)
            (answer,) = await asking.ask_all([prepared(asking, "double", read=0, write=32)])
            assert isinstance(answer, border.InferResponse)
            assert answer.outputs == [border.Tensor("OUTPUT", "FP32", (1, 4), b"", place(32))]
            # What the answer promises is there before it.
            assert path.read_bytes()[32:48] == (2 * ROW).tobytes()
            (statistics,) = await asking.engine.statistics("double", "")
            assert (statistics.success.count, statistics.fail.count, statistics.inference_count) == (1, 0, 1)


async def test_requests_of_a_batch_may_differ_in_where_their_data_is(repository: pathlib.Path) -> None:
    config = "dynamic_batching { max_queue_delay_microseconds: 200000 preferred_batch_size: 4 }\nmax_batch_size: 4"
    onnx_models.put(repository, "double", onnx_models.scale(2), config=config)
    with shared_objects.made(64) as path:
        path.write_bytes(ROW.tobytes() + (10 * ROW).tobytes() + bytes(32))
        async with client.running(repository) as asking:
            await register(asking, path)
            asked = [
                prepared(asking, "double", read=0),
                asking.prepare("double", 100 * ROW),
                prepared(asking, "double", read=16, write=32),
                asking.prepare("double", 1000 * ROW, outputs=[border.RequestedOutput("OUTPUT", region=place(48))]),
            ]
            answers = await asking.ask_all(asked)
            assert client.array(answers[0]).tolist() == (2 * ROW).tolist()
            assert client.array(answers[1]).tolist() == (200 * ROW).tolist()
            assert path.read_bytes()[32:] == (20 * ROW).tobytes() + (2000 * ROW).tobytes()
            (statistics,) = await asking.engine.statistics("double", "")
            assert [(each.batch_size, each.compute_infer.count) for each in statistics.batches] == [(4, 1)]


async def test_strings_travel_in_their_wire_form(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "text", onnx_models.identity("BYTES"))
    wire = b"".join(len(each).to_bytes(4, "little") + each for each in (b"a", b"", "é".encode(), b"xyz"))
    with shared_objects.made(128) as path:
        path.write_bytes(wire + bytes(128 - len(wire)))
        async with client.running(repository) as asking:
            await register(asking, path, 128)
            outputs = [border.RequestedOutput("OUTPUT", region=place(64, 64))]
            request, answered = asking.prepare("text", np.full((1, 4), ""), datatype="BYTES", outputs=outputs)
            request.inputs[0].data, request.inputs[0].region = b"", place(0, len(wire))
            (answer,) = await asking.ask_all([(request, answered)])
            assert isinstance(answer, border.InferResponse)
            assert path.read_bytes()[64 : 64 + len(wire)] == wire


async def test_what_does_not_fit_is_refused_and_counted(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity())
    with shared_objects.made(64) as path:
        async with client.running(repository) as asking:
            await register(asking, path)
            small = prepared(asking, "m", read=0, write=0, room=15)
            wrong = prepared(asking, "m", read=0)
            wrong[0].inputs[0].region = place(0, 12)
            beyond, unknown = prepared(asking, "m", read=60), prepared(asking, "m", read=0)
            unknown[0].inputs[0].region = place(0, 16, "nope")
            answers = [client.refusal(each) for each in await asking.ask_all([small, wrong, beyond, unknown])]
            assert "(15 bytes) should be at least 16 bytes" in answers[0].message
            assert "input byte size mismatch for input 'INPUT'" in answers[1].message
            assert "Invalid offset + byte size" in answers[2].message
            assert "Unable to find shared memory region: 'nope'" in answers[3].message
            assert [each.message.startswith("[request id: r] ") for each in answers] == [True, True, False, False]
            assert [each.kind for each in answers[2:]] == [
                border.ErrorKind.INVALID_ARGUMENT,
                border.ErrorKind.NOT_FOUND,
            ]
            (statistics,) = await asking.engine.statistics("m", "")
            assert (statistics.success.count, statistics.fail.count, statistics.failures["OTHER"]) == (0, 4, 4)


async def test_a_truncated_region_fails_its_request_alone(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity())
    with shared_objects.made(64) as path:
        async with client.running(repository) as asking:
            await register(asking, path)
            os.truncate(path, 4)
            cut, fine = prepared(asking, "m", read=0), asking.prepare("m", ROW)
            written = asking.prepare("m", ROW, outputs=[border.RequestedOutput("OUTPUT", region=place(0))])
            answers = await asking.ask_all([cut, fine, written])
            assert "truncated" in client.refusal(answers[0]).message
            assert client.array(answers[1]).tolist() == ROW.tolist()
            assert "beyond the 4 bytes" in client.refusal(answers[2]).message


async def test_truncation_in_the_middle_of_work_never_ends_the_process(repository: pathlib.Path) -> None:
    """Clients that truncate and grow their object all the time get answers of either kind."""
    onnx_models.put(repository, "m", onnx_models.identity())
    with shared_objects.made(64) as path:
        async with client.running(repository) as asking:
            await register(asking, path)
            stop = asyncio.Event()

            def shake() -> None:
                while not stop.is_set():
                    os.truncate(path, 0)
                    os.truncate(path, 64)

            shaking = asyncio.get_running_loop().run_in_executor(None, shake)
            try:
                for _ in range(100):
                    for answer in await asking.ask_all([prepared(asking, "m", read=0, write=16) for _ in range(4)]):
                        if isinstance(answer, border.InferenceError):
                            assert "truncated" in answer.message or "beyond the" in answer.message
            finally:
                stop.set()
                await shaking


async def test_an_unregistered_region_serves_who_has_it_and_goes_with_the_last(repository: pathlib.Path) -> None:
    one = "max_batch_size: 0\ninstance_group [{count: 1 kind: KIND_CPU}]\n"
    one += 'input [{name: "INPUT" data_type: TYPE_FP32 dims: [-1, 4]}]\n'
    one += 'output [{name: "OUTPUT" data_type: TYPE_FP32 dims: [-1, 4]}]'
    onnx_models.put(repository, "slow", onnx_models.slow(), config=one)
    with shared_objects.made(64) as path:
        path.write_bytes(ROW.tobytes() + bytes(48))
        async with client.running(repository) as asking:
            await register(asking, path)

            async def running() -> bool:
                return (await asking.engine.statistics("slow", ""))[0].in_flight > 0

            waiting = asyncio.ensure_future(
                asking.ask_all([prepared(asking, "slow", read=0, write=16 * index) for index in (1, 2, 3)])
            )
            await asking.until(running)
            await asking.engine.unregister_system_region("r")
            assert await asking.engine.system_regions("") == []
            assert shared_objects.key(path) in shared_objects.open_in(os.getpid())
            late = client.refusal((await asking.ask_all([prepared(asking, "slow", read=0)]))[0])
            assert late.kind is border.ErrorKind.NOT_FOUND
            assert all(isinstance(answer, border.InferResponse) for answer in await waiting)
            assert path.read_bytes() == ROW.tobytes() * 4
            gc.collect()
            await asking.until(lambda: shared_objects.key(path) not in shared_objects.open_in(os.getpid()))


async def test_regions_are_listed_and_names_are_unique(repository: pathlib.Path) -> None:
    with shared_objects.made(64) as path:
        async with client.running(repository) as asking:
            await register(asking, path)
            with pytest.raises(border.InferenceError, match="already in manager"):
                await register(asking, path)
            described = border.SystemRegion("r", shared_objects.key(path), 0, 64)
            assert await asking.engine.system_regions("r") == await asking.engine.system_regions("") == [described]
            assert await asking.engine.cuda_regions("") == []
            with pytest.raises(border.InferenceError, match="not CUDA shared memory"):
                await asking.engine.cuda_regions("r")
            await asking.engine.unregister_system_region("")
            assert await asking.engine.system_regions("") == []
