"""CUDA: asked for and had, or refused; never the CPU in its stead."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

from gpu_worker.engine import border
from gpu_worker.runtime import onnx_runtime, port
from tests.support import engine_client as client
from tests.support import onnx_models

GPUS = onnx_runtime.OnnxRuntime().gpus()
needs_gpu = pytest.mark.skipif(not GPUS, reason="no GPU that ONNX Runtime can use")


def test_a_gpu_that_is_not_there_is_a_failed_load(tmp_path: pathlib.Path) -> None:
    onnx_models.put(tmp_path, "m", onnx_models.identity())
    with pytest.raises(port.LoadFailed, match="GPU 99 was asked for"):
        onnx_runtime.OnnxRuntime().load(tmp_path / "m/1/model.onnx", port.Device("GPU", 99), port.SessionOptions())


async def test_asking_for_a_gpu_too_many_fails_the_load(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.identity(), config="instance_group { kind: KIND_GPU gpus: 99 }")
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(border.InferenceError, match="instance_group"):
            await asking.engine.load("m", {})


@pytest.mark.gpu
@needs_gpu
async def test_a_model_runs_on_cuda(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.add_sub(), config="instance_group { kind: KIND_GPU count: 2 gpus: 0 }")
    async with client.running(repository) as asking:
        row = np.arange(4, dtype=np.float32).reshape(1, 4)
        answers = await asking.ask_all([asking.prepare("m", row, row) for _ in range(8)])
        assert [client.array(each, "OUTPUT0").tolist() for each in answers] == [(2 * row).tolist()] * 8
        assert set((await asking.engine.statistics("m", ""))[0].memory_bytes) == {("GPU", 0)}


@pytest.mark.gpu
@needs_gpu
async def test_a_gpu_tells_its_name_and_capability(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.scale(2), config="instance_group { kind: KIND_GPU gpus: 0 }")
    assert re.fullmatch(r"\d+\.\d+", onnx_runtime.OnnxRuntime().capability(port.Device("GPU", 0)))
    async with client.running(repository) as asking:
        (seen,) = await asking.engine.statistics("m", "")
        assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", seen.gpu_uuid)


@pytest.mark.gpu
@needs_gpu
async def test_instances_without_a_kind_choose_cuda(repository: pathlib.Path) -> None:
    onnx_models.put(repository, "m", onnx_models.weights(64))
    async with client.running(repository, control=client.EXPLICIT) as asking:
        await asking.engine.load("m", {})
        group = (await asking.engine.model_config("m", "")).instance_group[0]
        assert group.kind == group.KIND_GPU
        assert (await asking.engine.statistics("m", ""))[0].memory_bytes["GPU", 0] > 32 << 20
