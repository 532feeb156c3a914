"""How a worker's rate grows with the front processes before its engine: --frontends 1, 2, and on to the cores less one.

Engine, fronts and generators share the machine, and there are as many generators as fronts, for one would be the
bottleneck: on two cores there is nothing to win. The processor time of a request, told apart for the engine and the
fronts, says what more cores would bring: the engine's share is what cannot be spread.
"""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil

from benchmarks import inference, processes, report
from examples.digits import train

IN_FLIGHT = 64
RUNS = 3


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """Requests a second, percentiles, and microseconds of processor time that one request took."""

    per_s: float
    p50_ms: float
    p99_ms: float
    engine_us: float
    fronts_us: float

    def figure(self) -> str:
        times = f"p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms"
        return (
            f"{self.per_s:,.0f}/s, {times}; a request: engine {self.engine_us:.0f} us, fronts {self.fronts_us:.0f} us"
        )


def run() -> report.Section:
    """Rates at 64 requests in flight, by protocol and number of fronts; each beside that of one process."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="tms-bench-") as scratch_name:
        scratch = pathlib.Path(scratch_name)
        trained = train.train(scratch)
        pixels, _ = train.held_out(trained.held_out)
        rows = list(_rows(scratch, trained.repository, sorted({1, 2, *range(2, cores)}), pixels[:1]))
    method = (
        f"{cores} cores, shared by engine, fronts and as many load generators as fronts; medians of {RUNS} runs of 2 s with "
        f"{IN_FLIGHT} requests in flight; reference: --frontends 1, all in one process (its time is the engine's)"
    )
    return report.Section("Front processes (digits, 64 FP32 in, 10 out)", method, rows)


def _rows(
    scratch: pathlib.Path, repository: pathlib.Path, counts: list[int], batch: np.ndarray[Any, Any]
) -> Iterator[report.Row]:
    alone: dict[str, float] = {}
    for count in counts:
        with processes.worker(scratch, repository, f"--frontends={count}") as at:
            for name, protocol, request in inference.requests(batch):
                middle = sorted(_once(at, protocol, request, count) for _ in range(RUNS))[RUNS // 2]
                reference = alone.setdefault(name, middle.per_s)
                what = f"{name}, --frontends {count}"
                yield report.Row(what, middle.figure(), f"{reference:,.0f}/s", middle.per_s / reference)


def _once(at: dict[str, Any], protocol: str, request: bytes, generators: int) -> Run:
    """The sum of the generators' rates, and the worst of their percentiles."""
    asked, (engine_s, fronts_s) = _count(at["metrics"]), _spent_s()
    with concurrent.futures.ThreadPoolExecutor(generators) as pool:
        each = max(1, IN_FLIGHT // generators)
        found = list(pool.map(lambda _: _load(protocol, at[protocol], request, each), range(generators)))
    asked, (engine_end_s, fronts_end_s) = _count(at["metrics"]) - asked, _spent_s()
    return Run(
        sum(one["per_s"] for one in found),
        max(one["p50_ms"] for one in found),
        max(one["p99_ms"] for one in found),
        (engine_end_s - engine_s) * 1e6 / asked,
        (fronts_end_s - fronts_s) * 1e6 / asked,
    )


def _load(protocol: str, port: int, request: bytes, concurrency: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.load", protocol, f"127.0.0.1:{port}"]
    flags = ["--request", base64.b64encode(request).decode(), "--concurrency", str(concurrency)]
    said = subprocess.run([*command, *flags], check=True, stdout=subprocess.PIPE).stdout
    answer: dict[str, float] = json.loads(said)
    return answer


def _count(port: int) -> int:
    """Requests that the model has answered since its load."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r'^nv_inference_request_success\{model="digits",.*\} (\d+)$', text, re.MULTILINE)
    return sum(map(int, found))


def _spent_s() -> tuple[float, float]:
    """Processor time of the engine, or of the one process that there is, and of all fronts so far."""
    (worker,) = [each for each in psutil.Process().children() if "tms-worker" in " ".join(each.cmdline())]
    members = worker.children()
    engines = [each for each in members if "engine" in each.cmdline()] or [worker]
    fronts = [each for each in members if "front" in each.cmdline()]
    engine_s, fronts_s = (sum(sum(each.cpu_times()[:2]) for each in some) for some in (engines, fronts))
    return engine_s, fronts_s
