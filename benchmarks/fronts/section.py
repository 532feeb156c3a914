"""The fronts against those of a real tritonserver and of MLServer, over an FP32 identity.

Ours is an ONNX model through the whole engine, theirs are in Python, which is all that Triton's wheel can run.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime

from benchmarks import report
from benchmarks.fronts import generators, models, requests, servers

RUNS = 3
SMALL, LARGE = 16, 150 * 1024
INSTANCES = (1, 2, 4)
_Measure = Callable[[generators.Address], generators.Load]
_Loads = Mapping[str, generators.Load]


@dataclasses.dataclass(frozen=True)
class _Sent:
    """What is sent."""

    small: requests.Request
    large: requests.Request

    def rates(self) -> dict[str, _Measure]:
        """What is told in requests a second, by the name of its row."""
        small = self.small
        found: dict[str, _Measure] = {
            "HTTP binary, 64 in flight": lambda at: generators.http(at, small.binary, 64, small.head),
            "gRPC, 64 in flight": lambda at: generators.grpc(at, small.message, 4, 16),
            "gRPC, 64 in flight, grpc-go": lambda at: generators.grpc(at, small.message, 4, 16, "grpc-go"),
            "HTTP binary, 64 in flight, tritonclient": lambda at: generators.tritonclient(at, "http", SMALL, 64),
            "gRPC, 64 in flight, tritonclient": lambda at: generators.tritonclient(at, "grpc", SMALL, 64),
        }
        if generators.H2LOAD:
            found |= {
                "HTTP binary, 64 in flight, h2load": lambda at: generators.h2load_http(
                    at, small.binary, 64, small.head
                ),
                "gRPC, 64 in flight, h2load": lambda at: generators.h2load_grpc(at, small.framed, 4, 16),
            }
        return found

    def flows(self) -> dict[str, _Measure]:
        """What is told in MiB of tensors a second, one way."""
        large = self.large
        return {
            "HTTP binary, 600 KiB, 8 in flight": lambda at: generators.http(at, large.binary, 8, large.head),
            "gRPC, 600 KiB, 8 in flight": lambda at: generators.grpc(at, large.message, 2, 4),
        }

    def waits(self) -> dict[str, _Measure]:
        """What is told in microseconds."""
        small = self.small
        return {
            "HTTP binary, 1 in flight, p50": lambda at: generators.http(at, small.binary, 1, small.head),
            "gRPC, 1 in flight, p50": lambda at: generators.grpc(at, small.message, 1, 1),
        }


def run() -> report.Section:
    """Every figure of ours beside Triton's of the same run; medians of runs."""
    with tempfile.TemporaryDirectory(prefix="tms-bench-") as name:
        folder = pathlib.Path(name)
        sent = _Sent(requests.write(folder, SMALL), requests.write(folder, LARGE))
        direct_us = report.median_of(RUNS, _direct_us)
        ours = _ours(folder, sent)
        count, theirs = _triton(folder, sent)
        rows = [*_rows(sent, ours, theirs, direct_us), *_mlserver(folder, sent, ours)]
    return report.Section("Fronts (FP32 identity)", _method(count, direct_us), rows)


def _ours(folder: pathlib.Path, sent: _Sent) -> _Loads:
    with servers.worker(models.ours(folder, 1), folder) as at:
        generators.check(at, sent.small)
        return _measured(at, sent)


def _triton(folder: pathlib.Path, sent: _Sent) -> tuple[int, _Loads]:
    """At the instance count that serves HTTP and gRPC best together."""
    rates = {}
    for count in INSTANCES:
        with servers.triton(folder, count) as at:
            generators.check(at, sent.small)
            both = list(sent.rates().values())[:2]
            rates[count] = sum(measure(at).per_s for measure in both)
    best = max(rates, key=lambda count: rates[count])
    with servers.triton(folder, best) as at:
        return best, _measured(at, sent)


def _mlserver(folder: pathlib.Path, sent: _Sent, ours: _Loads) -> list[report.Row]:
    """It takes no binary tensors over HTTP, so only gRPC can be compared."""
    name = "gRPC, 64 in flight"
    with servers.mlserver(folder) as at:
        theirs = _middle(sent.rates()[name], at)
    figure, reference = f"{ours[name].per_s:,.0f}/s", f"{theirs.per_s:,.0f}/s MLServer"
    return [report.Row(name, figure, reference, ours[name].per_s / theirs.per_s)]


def _measured(at: generators.Address, sent: _Sent) -> _Loads:
    measures = {**sent.rates(), **sent.flows(), **sent.waits()}
    return {name: _middle(measure, at) for name, measure in measures.items()}


def _middle(measure: _Measure, at: generators.Address) -> generators.Load:
    return sorted((measure(at) for _ in range(RUNS)), key=lambda load: load.per_s)[RUNS // 2]


def _rows(sent: _Sent, ours: _Loads, theirs: _Loads, direct_us: float) -> list[report.Row]:
    rows = []
    for name in sent.rates():
        figure = f"{ours[name].per_s:,.0f}/s{_late(ours[name])}"
        reference = f"{theirs[name].per_s:,.0f}/s{_late(theirs[name])} Triton"
        rows.append(report.Row(name, figure, reference, ours[name].per_s / theirs[name].per_s))
    for name in sent.flows():
        mine, other = (load.per_s * sent.large.tensor_bytes / 2**20 for load in (ours[name], theirs[name]))
        rows.append(report.Row(name, f"{mine:,.0f} MiB/s", f"{other:,.0f} MiB/s Triton", mine / other))
    for name in sent.waits():
        mine, other = ours[name].p50_ms * 1000, theirs[name].p50_ms * 1000
        rows.append(report.Row(name, f"{mine:,.0f} us", f"{other:,.0f} us Triton", mine / other))
        rows.append(report.Row(f"{name}, less the direct call", f"{mine - direct_us:,.0f} us"))
    return rows


def _late(load: generators.Load) -> str:
    return f", p99 {load.p99_ms:.2f} ms" if load.p99_ms else ""


def _direct_us() -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(models.onnx_identity(), options, providers=["CPUExecutionProvider"])
    feed: dict[str, Any] = {"INPUT": np.zeros((1, SMALL), np.float32)}
    calls, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < 1:
        session.run(None, feed)
        calls += 1
    return spent / calls * 1e6


def _method(count: int, direct_us: float) -> str:
    method = (
        f"medians of {RUNS} runs of {generators.SECONDS} s; server and client share the cores; max_batch_size "
        f"{models.MAX_BATCH}, dynamic batching; ours: onnxruntime, 1 CPU instance; Triton: Python backend, {count} "
        f"instances, the best of {INSTANCES}; MLServer: no parallel workers; onnxruntime called directly: "
        f"{direct_us:.1f} us; headers differ from call to call but for h2load's"
    )
    return method if generators.H2LOAD else f"{method}; {generators.NO_H2LOAD}"
