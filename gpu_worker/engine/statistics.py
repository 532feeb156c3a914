"""Counters of one model version.

One lock, taken once for a batch: sums are made before, so that the cost for a request is next to nothing.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping

from gpu_worker.engine import border

REJECTED = "REJECTED"
CANCELED = "CANCELED"
BACKEND = "BACKEND"
OTHER = "OTHER"


@dataclasses.dataclass(slots=True)
class Timings:
    """Nanoseconds one execution took to gather its inputs, to run, and to split its outputs."""

    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class Executed:
    """One execution: requests and items in it, their waits and lives summed over the requests."""

    requests: int
    items: int
    queue_ns: int
    total_ns: int
    timings: Timings


@dataclasses.dataclass(slots=True)
class _Duration:
    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns

    def frozen(self) -> border.Duration:
        return border.Duration(self.count, self.ns)


@dataclasses.dataclass(slots=True)
class _Compute:
    input: _Duration = dataclasses.field(default_factory=_Duration)
    infer: _Duration = dataclasses.field(default_factory=_Duration)
    output: _Duration = dataclasses.field(default_factory=_Duration)

    def add(self, times: int, timings: Timings) -> None:
        self.input.add(times, times * timings.input_ns)
        self.infer.add(times, times * timings.infer_ns)
        self.output.add(times, times * timings.output_ns)


@dataclasses.dataclass(frozen=True, slots=True)
class LoadCost:
    """What a load took: seconds, and bytes by (memory kind, device)."""

    duration_s: float = 0.0
    memory_bytes: Mapping[tuple[str, int], int] = dataclasses.field(default_factory=dict)


class Statistics:
    """Counts from any thread; `snapshot` gives a consistent picture."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_inference_ms = 0
        self._items = 0
        self._executions = 0
        self._success = _Duration()
        self._fail = _Duration()
        self._queue = _Duration()
        self._compute = _Compute()
        self._batches: dict[int, _Compute] = {}
        self._failures = dict.fromkeys((REJECTED, CANCELED, BACKEND, OTHER), 0)

    def executed(self, done: Executed) -> None:
        # The protocol gives this moment in wall-clock time; nothing is decided by it.
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            self._last_inference_ms = now_ms
            self._items += done.items
            self._executions += 1
            self._success.add(done.requests, done.total_ns)
            self._queue.add(done.requests, done.queue_ns)
            self._compute.add(done.requests, done.timings)
            batch = self._batches.get(done.items)
            if batch is None:
                batch = self._batches[done.items] = _Compute()
            batch.add(1, done.timings)

    def failed(self, reason: str, count: int, total_ns: int) -> None:
        """Counts requests that ended without a result; `total_ns` sums their lives."""
        with self._lock:
            self._failures[reason] += count
            self._fail.add(count, total_ns)

    def snapshot(self, name: str, version: str, pending: int, cost: LoadCost) -> border.ModelStatistics:
        with self._lock:
            return border.ModelStatistics(
                name=name,
                version=version,
                last_inference_ms=self._last_inference_ms,
                inference_count=self._items,
                execution_count=self._executions,
                success=self._success.frozen(),
                fail=self._fail.frozen(),
                queue=self._queue.frozen(),
                compute_input=self._compute.input.frozen(),
                compute_infer=self._compute.infer.frozen(),
                compute_output=self._compute.output.frozen(),
                batches=tuple(
                    border.BatchStatistics(size, each.input.frozen(), each.infer.frozen(), each.output.frozen())
                    for size, each in sorted(self._batches.items())
                ),
                pending=pending,
                failures=dict(self._failures),
                memory_bytes=cost.memory_bytes,
                load_duration_s=cost.duration_s,
            )
