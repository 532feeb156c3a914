"""Counters of one model version.

One lock, taken once for a batch: sums are made before, so that the cost for a request is next to nothing.
"""

from __future__ import annotations

import bisect
import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence

from gpu_worker.engine import border, quantiles

REJECTED = "REJECTED"
CANCELED = "CANCELED"
BACKEND = "BACKEND"
OTHER = "OTHER"

SUMMARIES = ("request", "queue", "compute_input", "compute_infer", "compute_output")

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
    """One execution: items in it, and how long each of its requests waited and lived.

    `rows` is the size of the batch that the model ran, where that is not `items`.
    """

    items: int
    waits_ns: Sequence[int]
    lives_ns: Sequence[int]
    timings: Timings
    rows: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """Requests that wait for an instance, and all that have no answer yet."""

    pending: int = 0
    in_flight: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Observed:
    """What is kept beside the counters: a histogram of first responses with these bounds, summaries at these quantiles.

    Empty means that it is not kept.
    """

    bounds_ms: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()


class _Observations:
    """The histogram and the summaries of one model version."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._counts = [0] * (len(observed.bounds_ms) + 1)
        self._total_ns = 0
        self._sketches = {name: quantiles.Sketch() for name in SUMMARIES} if observed.quantiles else {}

    def add(self, done: Executed) -> None:
        if self._observed.bounds_ms:
            self._total_ns += sum(done.lives_ns)
            for life_ns in done.lives_ns:
                self._counts[bisect.bisect_left(self._observed.bounds_ms, life_ns / 1e6)] += 1
        if self._sketches:
            self._summarise(done)

    def _summarise(self, done: Executed) -> None:
        now_ns = time.monotonic_ns()
        requests = len(done.lives_ns)
        timings = done.timings
        computed = (timings.input_ns, timings.infer_ns, timings.output_ns)
        each_ns = (done.lives_ns, done.waits_ns, *([taken_ns] * requests for taken_ns in computed))
        for sketch, values_ns in zip(self._sketches.values(), each_ns, strict=True):
            sketch.add((value_ns // 1000 for value_ns in values_ns), now_ns)

    def histogram(self) -> border.Histogram | None:
        bounds_ms = self._observed.bounds_ms
        return border.Histogram(bounds_ms, tuple(self._counts), self._total_ns / 1e6) if bounds_ms else None

    def summaries(self) -> dict[str, border.Summary]:
        now_ns = time.monotonic_ns()
        return {name: sketch.summary(self._observed.quantiles, now_ns) for name, sketch in self._sketches.items()}


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

    def __init__(self, observed: Observed | None = None) -> None:
        self._lock = threading.Lock()
        self._observations = _Observations(observed or Observed())
        self._last_inference_ms = 0
        self._items = 0
        self._executions = 0
        self._success = _Duration()
        self._fail = _Duration()
        self._queue = _Duration()
        self._compute = _Compute()
        self._cache_hit = _Duration()
        self._cache_miss = _Duration()
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
            self._queue.add(requests, sum(done.waits_ns))
            self._compute.add(requests, done.timings)
            self._observations.add(done)
            for life_ns in done.lives_ns:
                self._latency[bisect.bisect_left(_BOUNDS_NS, life_ns)] += 1
            size = done.rows or done.items
            batch = self._batches.get(size)
            if batch is None:
                batch = self._batches[size] = _Compute()
            batch.add(1, done.timings)

    def hit(self, life_ns: int, wait_ns: int, lookup_ns: int) -> None:
        """Counts a request that was answered from the cache: no inference, but a success."""
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            self._last_inference_ms = now_ms
            self._success.add(1, life_ns)
            self._queue.add(1, wait_ns)
            self._cache_hit.add(1, lookup_ns)
            self._latency[bisect.bisect_left(_BOUNDS_NS, life_ns)] += 1

    def missed(self, count: int, total_ns: int) -> None:
        """Counts requests that the cache has no answer to; `total_ns` went into looking for it, or keeping it."""
        with self._lock:
            self._cache_miss.add(count, total_ns)

    def served(self, waits_ns: Sequence[int], lives_ns: Sequence[int], timings: Timings) -> None:
        """Counts requests that were answered on their own, after the execution that `executed` counted."""
        requests = len(lives_ns)
        with self._lock:
            self._success.add(requests, sum(lives_ns))
            self._queue.add(requests, sum(waits_ns))
            self._compute.add(requests, timings)
            self._observations.add(Executed(items=0, waits_ns=waits_ns, lives_ns=lives_ns, timings=timings))
            for life_ns in lives_ns:
                self._latency[bisect.bisect_left(_BOUNDS_NS, life_ns)] += 1

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
                cache_hit=self._cache_hit.frozen(),
                cache_miss=self._cache_miss.frozen(),
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
                first_response=self._observations.histogram(),
                summaries=self._observations.summaries(),
            )
