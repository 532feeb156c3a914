"""Inference through the worker's fronts against onnxruntime called directly: the same model, one digit a request."""

from __future__ import annotations

import base64
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import onnxruntime

from benchmarks import processes, report
from examples.digits import train
from protos.inference.v2 import predict_pb2

CONCURRENCIES = (1, 16, 64)
RUNS = 3


def run() -> report.Section:
    """Rates and percentiles of three protocols at several numbers of requests in flight; medians of runs."""
    with tempfile.TemporaryDirectory(prefix="tms-bench-") as scratch_name:
        scratch = pathlib.Path(scratch_name)
        trained = train.train(scratch)
        pixels, _ = train.held_out(trained.held_out)
        direct = report.median_of(RUNS, lambda: _direct(trained.repository / "digits/2/model.onnx", pixels[:1]))
        with processes.worker(scratch, trained.repository) as at:
            rows = [
                _row(name, protocol, f"127.0.0.1:{at[protocol]}", request, concurrency, direct)
                for name, protocol, request in requests(pixels[:1])
                for concurrency in CONCURRENCIES
            ]
    method = (
        f"medians of {RUNS} runs of 2 s; client and worker share the cores; reference: onnxruntime called in a loop with "
        f"one thread, {direct:,.0f} calls/s"
    )
    return report.Section("Inference (digits, 64 FP32 in, 10 out)", method, rows)


def _direct(model: pathlib.Path, batch: np.ndarray[Any, Any]) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    calls, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < 1:
        session.run(None, {"pixels": batch})
        calls += 1
    return calls / spent


def requests(batch: np.ndarray[Any, Any]) -> list[tuple[str, str, bytes]]:
    """What is measured: its name, its protocol and the bytes of one request."""
    message = predict_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[batch.tobytes()])
    message.inputs.add(name="pixels", datatype="FP32", shape=batch.shape)
    return [
        ("HTTP JSON", "http", _http(batch, binary=False)),
        ("HTTP binary", "http", _http(batch, binary=True)),
        ("gRPC", "grpc", message.SerializeToString()),
    ]


def _http(batch: np.ndarray[Any, Any], *, binary: bool) -> bytes:
    tensor: dict[str, Any] = {"name": "pixels", "shape": batch.shape, "datatype": "FP32"}
    raw = batch.tobytes() if binary else b""
    tensor |= {"parameters": {"binary_data_size": len(raw)}} if binary else {"data": batch.ravel().tolist()}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
    lines = ["POST /v2/models/digits/infer HTTP/1.1", "Host: bench", f"Content-Length: {len(head) + len(raw)}"]
    if binary:
        lines.append(f"Inference-Header-Content-Length: {len(head)}")
    return "\r\n".join([*lines, "", ""]).encode() + head + raw


def _row(name: str, protocol: str, address: str, request: bytes, concurrency: int, direct: float) -> report.Row:
    command = [sys.executable, "-m", "benchmarks.load", protocol, address]
    flags = ["--request", base64.b64encode(request).decode(), "--concurrency", str(concurrency)]
    runs = [
        json.loads(subprocess.run([*command, *flags], check=True, stdout=subprocess.PIPE).stdout) for _ in range(RUNS)
    ]
    middle = sorted(runs, key=lambda run: run["per_s"])[RUNS // 2]
    figure = f"{middle['per_s']:,.0f}/s, p50 {middle['p50_ms']:.2f} ms, p99 {middle['p99_ms']:.2f} ms"
    return report.Row(f"{name}, {concurrency} in flight", figure, f"{direct:,.0f}/s direct", middle["per_s"] / direct)
