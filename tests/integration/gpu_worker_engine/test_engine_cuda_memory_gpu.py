"""CUDA shared memory that another process exports: read, written, bounded, given back."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from gpu_worker.engine import border
from gpu_worker.memory import cuda
from tests.support import engine_client as client
from tests.support import onnx_models

SIZE_BYTES = 64
EXPORTER = pathlib.Path(__file__).with_name("cuda_exporter.py")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not cuda.gpus(), reason="no GPU that CUDA can use")]

Ask = Callable[[str], bytes]


@pytest.fixture
def exporter() -> Iterator[tuple[bytes, Ask]]:
    """A handle, and a way to ask for what its memory holds."""
    command = [sys.executable, str(EXPORTER), str(SIZE_BYTES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sent, told = process.stdin, process.stdout

        def ask(line: str) -> bytes:
            sent.write(line + "\n")
            sent.flush()
            return bytes.fromhex(told.readline())

        yield bytes.fromhex(told.readline()), ask


async def test_a_model_reads_and_writes_exported_memory(repository: pathlib.Path, exporter: tuple[bytes, Ask]) -> None:
    handle, ask = exporter
    onnx_models.put(repository, "m", onnx_models.identity("UINT8"))
    async with client.running(repository) as asking:
        region = border.CudaRegion("c", 0, SIZE_BYTES)
        await asking.engine.register_cuda_region(region, handle)
        assert await asking.engine.cuda_regions("") == [region]
        outputs = [border.RequestedOutput("OUTPUT", region=border.Region("c", 32, 4))]
        request, answered = asking.prepare("m", np.zeros((1, 4)), datatype="UINT8", outputs=outputs)
        request.inputs[0].data, request.inputs[0].region = b"", border.Region("c", 4, 4)
        (answer,) = await asking.ask_all([(request, answered)])
        assert isinstance(answer, border.InferResponse)
        assert answer.outputs[0].region == border.Region("c", 32, 4)
        content = ask("show")
        assert content[32:36] == bytes([4, 5, 6, 7])
        assert content[36:] == bytes(range(36, SIZE_BYTES))
        await asking.engine.unregister_cuda_region("")
        assert await asking.engine.cuda_regions("") == []
        await asking.engine.register_cuda_region(region, handle)


def test_what_is_not_there_is_refused(exporter: tuple[bytes, Ask]) -> None:
    handle, _ = exporter
    for region, given in (
        (border.CudaRegion("c", 99, 8), handle),
        (border.CudaRegion("c", 0, 0), handle),
        (border.CudaRegion("c", 0, 8), bytes(64)),
        (border.CudaRegion("c", 0, 2**40), handle),
    ):
        with pytest.raises(border.InferenceError) as caught:
            cuda.CudaMemory(region, given)
        assert caught.value.kind is border.ErrorKind.INVALID_ARGUMENT
