"""Models in Python: the same `model.py` in our worker and in a real tritonserver's Python backend, asked by the same client.

An FP32 identity, so that all that is measured is the way to the model's process and back.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Mapping

from benchmarks import report
from benchmarks.fronts import generators, models, requests, servers

RUNS = 3
SMALL, LARGE = 16, 150 * 1024
INSTANCES = (1, 2)
_Measure = Callable[[generators.Address], generators.Load]


def run() -> report.Section:
    """Every figure of ours beside Triton's of the same run and the same count of instances; medians of runs."""
    rows: list[report.Row] = []
    with tempfile.TemporaryDirectory(prefix="tms-bench-") as name:
        folder = pathlib.Path(name)
        small, large = requests.write(folder, SMALL), requests.write(folder, LARGE)
        for count in INSTANCES:
            with servers.worker(models.triton(folder, count), folder) as at:
                generators.check(at, small)
                ours = _measured(at, small, large)
            with servers.triton(folder, count) as at:
                generators.check(at, small)
                theirs = _measured(at, small, large)
            rows += _rows(count, ours, theirs, large.tensor_bytes)
    method = (
        f"medians of {RUNS} runs of {generators.SECONDS} s; server and client share the cores; the same model.py and "
        f"config.pbtxt, max_batch_size {models.MAX_BATCH}, dynamic batching"
    )
    return report.Section("Python backend (FP32 identity)", method, rows)


def _measures(small: requests.Request, large: requests.Request) -> dict[str, _Measure]:
    return {
        "HTTP binary, 64 in flight": lambda at: generators.http(at, small.binary, 64, small.head),
        "gRPC, 64 in flight": lambda at: generators.grpc(at, small.message, 4, 16),
        "HTTP binary, 600 KiB, 8 in flight": lambda at: generators.http(at, large.binary, 8, large.head),
        "gRPC, 600 KiB, 8 in flight": lambda at: generators.grpc(at, large.message, 2, 4),
        "HTTP binary, 1 in flight, p50": lambda at: generators.http(at, small.binary, 1, small.head),
        "gRPC, 1 in flight, p50": lambda at: generators.grpc(at, small.message, 1, 1),
    }


def _measured(
    at: generators.Address, small: requests.Request, large: requests.Request
) -> Mapping[str, generators.Load]:
    return {name: _middle(measure, at) for name, measure in _measures(small, large).items()}


def _middle(measure: _Measure, at: generators.Address) -> generators.Load:
    return sorted((measure(at) for _ in range(RUNS)), key=lambda load: load.per_s)[RUNS // 2]


def _rows(
    count: int, ours: Mapping[str, generators.Load], theirs: Mapping[str, generators.Load], tensor_bytes: int
) -> list[report.Row]:
    return [_row(f"{name}, {count} instance(s)", ours[name], theirs[name], tensor_bytes) for name in ours]


def _row(name: str, mine: generators.Load, other: generators.Load, tensor_bytes: int) -> report.Row:
    if "p50" in name:
        figure, reference = f"{mine.p50_ms * 1000:,.0f} us", f"{other.p50_ms * 1000:,.0f} us Triton"
        return report.Row(name, figure, reference, mine.p50_ms / other.p50_ms)
    if "KiB" in name:
        each = tensor_bytes / 2**20
        figure, reference = f"{mine.per_s * each:,.0f} MiB/s", f"{other.per_s * each:,.0f} MiB/s Triton"
    else:
        figure, reference = f"{mine.per_s:,.0f}/s", f"{other.per_s:,.0f}/s Triton"
    return report.Row(name, figure, reference, mine.per_s / other.per_s)
