"""An ensemble of three steps against the same steps asked one after another: what the chaining costs, or saves.

Both are asked in turns in one run. The engine is asked in this process, so that no front is in the way; through HTTP the
steps cost a round trip each. Tensors are FP32.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import logging
import pathlib
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import onnx
import structlog
import uvloop
from onnx import TensorProto, helper, numpy_helper

from benchmarks import processes, report
from gpu_worker import core
from gpu_worker.engine import border

STEPS = ("two", "three", "five")
SECONDS = 2.0
SIZES = (4, 2**18)
_CONFIG = "max_batch_size: 8\ninstance_group { count: 1 kind: KIND_CPU }\n"


def run() -> report.Section:
    """Medians of the time of a request, and of the time of three."""
    rows: list[report.Row] = []
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="tms-bench-") as scratch_name:
        scratch = pathlib.Path(scratch_name)
        for count in SIZES:
            repository = _repository(scratch / str(count), count)
            rows.append(uvloop.run(_engine(repository, count)))
            with processes.worker(scratch, repository) as at:
                rows.append(_http(at["http"], count))
    method = (
        f"medians over {SECONDS:g} s, in turns: one request to an ensemble of {len(STEPS)} steps, and its steps asked one after "
        "another; one request in flight"
    )
    return report.Section("Ensembles (three multiplications)", method, rows)


def _repository(root: pathlib.Path, count: int) -> pathlib.Path:
    for factor, name in enumerate(STEPS, 2):
        directory = root / name / "1"
        directory.mkdir(parents=True)
        (directory / "model.onnx").write_bytes(_multiplier(factor, count))
        (root / name / "config.pbtxt").write_text(_CONFIG)
    (root / "all" / "1").mkdir(parents=True)
    names = ("IN", "MID0", "MID1", "OUT")
    steps = ", ".join(
        f'{{model_name: "{name}" model_version: -1 input_map {{key: "INPUT" value: "{names[index]}"}} '
        f'output_map {{key: "OUTPUT" value: "{names[index + 1]}"}}}}'
        for index, name in enumerate(STEPS)
    )
    (root / "all" / "config.pbtxt").write_text(
        f'platform: "ensemble" max_batch_size: 8\ninput [{{name: "IN" data_type: TYPE_FP32 dims: [{count}]}}]\n'
        f'output [{{name: "OUT" data_type: TYPE_FP32 dims: [{count}]}}]\nensemble_scheduling {{step [{steps}]}}'
    )
    return root


def _multiplier(factor: int, count: int) -> bytes:
    shape = ("batch", count)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["INPUT", "FACTOR"], ["OUTPUT"])],
        "graph",
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("OUTPUT", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array([factor], np.float32), "FACTOR")],
    )
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return made.SerializeToString()


async def _engine(repository: pathlib.Path, count: int) -> report.Row:
    engine = core.Core.create(core.Options(repositories=(repository,)))
    data = np.ones((1, count), np.float32).tobytes()
    try:
        await engine.start()

        async def ask(model: str, name: str) -> None:
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def reply(answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
                assert final
                if isinstance(answer, border.InferenceError):
                    answered.set_exception(answer)
                else:
                    answered.set_result(None)

            given = border.Tensor(name, "FP32", (1, count), data)
            engine.submit([border.InferRequest(model, "", "", [given], [], {}, reply)])
            await answered

        whole, steps = await _in_turns(lambda: ask("all", "IN"), [_asking(ask, step) for step in STEPS])
    finally:
        await engine.close()
    return _row("engine alone", count, whole, steps)


def _asking(ask: Callable[[str, str], Awaitable[None]], step: str) -> Callable[[], Awaitable[None]]:
    return lambda: ask(step, "INPUT")


async def _in_turns(
    whole: Callable[[], Awaitable[None]], steps: Sequence[Callable[[], Awaitable[None]]]
) -> tuple[float, float]:
    """Median seconds of the one, and of the others together."""
    times: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.freeze()
    end_s = time.perf_counter() + SECONDS
    while (begun_s := time.perf_counter()) < end_s:
        await whole()
        between_s = time.perf_counter()
        for step in steps:
            await step()
        times[0].append(between_s - begun_s)
        times[1].append(time.perf_counter() - between_s)
    return statistics.median(times[0]), statistics.median(times[1])


def _http(port: int, count: int) -> report.Row:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        body = np.ones((1, count), np.float32).tobytes()

        def asking(model: str, name: str) -> Callable[[], Awaitable[None]]:
            head = (
                f'{{"inputs":[{{"name":"{name}","datatype":"FP32","shape":[1,{count}],"parameters":{{"binary_data_size":'
                f'{len(body)}}}}}],"parameters":{{"binary_data_output":true}}}}'
            ).encode()
            request = head + body
            headers = {"Inference-Header-Content-Length": str(len(head))}

            async def ask() -> None:
                connection.request("POST", f"/v2/models/{model}/infer", request, headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == http.client.OK, answer.status

            return ask

        whole, steps = asyncio.run(_in_turns(asking("all", "IN"), [asking(step, "INPUT") for step in STEPS]))
    return _row("HTTP, binary", count, whole, steps)


def _row(name: str, count: int, whole_s: float, steps_s: float) -> report.Row:
    size_bytes = count * 4
    size = f"{size_bytes // 2**20} MiB" if size_bytes >= 2**20 else f"{size_bytes} bytes"
    return report.Row(
        f"{name}, {size}", f"{whole_s * 1e6:,.0f} us", f"{steps_s * 1e6:,.0f} us one by one", whole_s / steps_s
    )
