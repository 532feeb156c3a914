"""Counters of one model version.

One lock, taken once for a batch: sums are made before, so that the cost for a request is next to nothing.
"""

from __future__ import annotations

import bisect
import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence

from gpu_worker.engine import border

REJECTED = "REJECTED"
CANCELED = "CANCELED"
BACKEND = "BACKEND"
OTHER = "OTHER"

LATENCY_BOUNDS_US = tuple(
    digit * 10**power for power in range(2, 8) for digit in (1, 2, 5) if 200 <= digit * 10**power <= 20_000_000
)
_BOUNDS_NS = [bound * 1000 for bound in LATENCY_BOUNDS_US]


@dataclasses.dataclass(slots=True)
class Timings:
    """Nanoseconds one execution took to gather its inputs, to run, and to split its outputs."""

    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class Executed:
    """One execution: items in it, the waits of its requests summed, and the life of each."""

    items: int
    queue_ns: int
    lives_ns: Sequence[int]
    timings: Timings


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """Requests that wait for an instance, and all that have no answer yet."""

    pending: int = 0
    in_flight: int = 0


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
        self._latency = [0] * (len(_BOUNDS_NS) + 1)
        self._failures = dict.fromkeys((REJECTED, CANCELED, BACKEND, OTHER), 0)

    def executed(self, done: Executed) -> None:
        # The protocol gives this moment in wall-clock time; nothing is decided by it.
        now_ms = time.time_ns() // 1_000_000
        requests = len(done.lives_ns)
        with self._lock:
            self._last_inference_ms = now_ms
            self._items += done.items
            self._executions += 1
            self._success.add(requests, sum(done.lives_ns))
            self._queue.add(requests, done.queue_ns)
            self._compute.add(requests, done.timings)
            for life_ns in done.lives_ns:
                self._latency[bisect.bisect_left(_BOUNDS_NS, life_ns)] += 1
            batch = self._batches.get(done.items)
            if batch is None:
                batch = self._batches[done.items] = _Compute()
            batch.add(1, done.timings)

    def failed(self, reason: str, count: int, total_ns: int) -> None:
        """Counts requests that ended without a result; `total_ns` sums their lives."""
        with self._lock:
            self._failures[reason] += count
            self._fail.add(count, total_ns)

    def snapshot(self, name: str, version: str, waiting: Waiting, cost: LoadCost) -> border.ModelStatistics:
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
                pending=waiting.pending,
                in_flight=waiting.in_flight,
                latency=tuple(self._latency),
                failures=dict(self._failures),
                memory_bytes=cost.memory_bytes,
                load_duration_s=cost.duration_s,
            )
