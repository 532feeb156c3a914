"""Prometheus metrics under the names that Triton's dashboards know, and the port that serves them.

Decides which families exist and how they are printed. Must never block the event loop on a driver, nor fail a scrape
because a device cannot be read.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import structlog

from gpu_worker import machine
from gpu_worker.engine import border, statistics
from gpu_worker.http import api, messages, routes

log = structlog.get_logger(__name__)

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_REMEMBERED = 1000
LATENCY = "tms_inference_request_duration_seconds"
LATENCY_WORDS = "Time of successful requests from their arrival to their answer, in seconds"
FAILURE_WORDS = "Number of failed inference requests"
_LATENCY_BOUNDS = (*(f"{bound / 1e6:g}" for bound in statistics.LATENCY_BOUNDS_US), "+Inf")
_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")

_CUMULATIVE = ("_duration_us", "_duration_per_model")
FIRST_RESPONSE = "nv_inference_first_response_histogram_ms"
FIRST_RESPONSE_WORDS = "Time of successful requests from their arrival to their first response, in milliseconds"
SUMMARIES = {
    "request": "Time of requests from their arrival to their answer, in microseconds",
    "queue": "Time of requests in the queue, in microseconds",
    "compute_input": "Time to gather the inputs of requests, in microseconds",
    "compute_infer": "Time of the model's runs, in microseconds",
    "compute_output": "Time to split the outputs of requests, in microseconds",
}

PER_MODEL: tuple[tuple[str, str, str, Callable[[border.ModelStatistics], float]], ...] = (
    (
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests",
        lambda of: of.success.count,
    ),
    (
        "nv_inference_count",
        "counter",
        "Number of inferences performed (does not include cached requests)",
        lambda of: of.inference_count,
    ),
    (
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed (does not include cached requests)",
        lambda of: of.execution_count,
    ),
    (
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative inference request duration in microseconds",
        lambda of: of.success.ns // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative inference queuing duration in microseconds",
        lambda of: of.queue.ns // 1000,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "counter",
        "Cumulative compute input duration in microseconds",
        lambda of: of.compute_input.ns // 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative compute inference duration in microseconds",
        lambda of: of.compute_infer.ns // 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "counter",
        "Cumulative inference compute output duration in microseconds",
        lambda of: of.compute_output.ns // 1000,
    ),
    (
        "nv_inference_pending_request_count",
        "gauge",
        "Instantaneous number of pending requests awaiting execution",
        lambda of: of.pending,
    ),
    (
        "tms_inference_in_flight",
        "gauge",
        "Requests that have no answer yet, waiting or running",
        lambda of: of.in_flight,
    ),
    ("nv_model_load_duration_secs", "gauge", "Model load time in seconds", lambda of: of.load_duration_s),
)

PER_CACHED_MODEL: tuple[tuple[str, str, str, Callable[[border.ModelStatistics], float]], ...] = (
    ("nv_cache_num_hits_per_model", "counter", "Number of cache hits per model", lambda of: of.cache_hit.count),
    ("nv_cache_num_misses_per_model", "counter", "Number of cache misses per model", lambda of: of.cache_miss.count),
    (
        "nv_cache_hit_duration_per_model",
        "counter",
        "Total cache hit duration per model, in microseconds",
        lambda of: of.cache_hit.ns // 1000,
    ),
    (
        "nv_cache_miss_duration_per_model",
        "counter",
        "Total cache miss duration per model, in microseconds",
        lambda of: of.cache_miss.ns // 1000,
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Switches:
    """What is shown beside the models, and how old a reading of the machine may be."""

    gpu: bool = True
    cpu: bool = True
    interval_s: float = 2.0
    counter_latencies: bool = True


class Metrics:
    """The application of the metrics port. `close` ends its thread."""

    def __init__(self, engine: border.Engine, switches: Switches) -> None:
        self._engine = engine
        self._switches = switches
        self._machine = machine.Machine(gpu=switches.gpu, cpu=switches.cpu)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "metrics")
        self._readings: list[machine.Reading] = []
        self._read_at_s: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: dict[tuple[str, str], tuple[Mapping[str, str], Mapping[str, int]]] = {}

    def parallel(self, request: messages.Request) -> bool:  # noqa: ARG002 - the application's shape
        return True

    def leaving(self, target: bytes) -> bool:  # noqa: ARG002 - the application's shape
        return False

    def handle(self, request: messages.Request) -> None:
        route = routes.metrics(request.target)
        if route is None:
            request.answer(messages.refusal(404, "Not Found"))
        elif request.method not in route.verbs:
            request.answer(api.not_allowed(route))
        elif self._fresh():
            self._spawn(self._answer(request))
        else:
            self._read_at_s = time.monotonic()
            self._spawn(self._read_and_answer(request))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def text(self) -> str:
        """The exposition as it is now, with the machine as last read."""
        found = await self._engine.statistics("", "")
        families = (_models(found, self._switches), _latency(found), _first_responses(found), _summaries(found))
        return "".join([*itertools.chain(*families), *self._failed(found), *_readings(self._readings)])

    def _fresh(self) -> bool:
        read_at_s = self._read_at_s
        return read_at_s is not None and time.monotonic() - read_at_s < self._switches.interval_s

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_and_answer(self, request: messages.Request) -> None:
        try:
            self._readings = await asyncio.get_running_loop().run_in_executor(self._thread, self._machine.read)
        except Exception:
            log.exception("metrics.machine_unreadable")
        await self._answer(request)

    async def _answer(self, request: messages.Request) -> None:
        try:
            response = messages.Response(200, ((await self.text()).encode(),), CONTENT_TYPE)
        except border.InferenceError as error:
            response = messages.failure(error)
        except Exception:
            log.exception("metrics.failed")
            response = messages.refusal(500, "Internal error; the server's log says more")
        request.answer(response)

    def _failed(self, found: Sequence[border.ModelStatistics]) -> Iterable[str]:
        """Failure counters outlive their model, as dashboards expect."""
        for of in found:
            # The latest go to the end, and what was gone longest is forgotten first.
            self._failures.pop((of.name, of.version), None)
            self._failures[of.name, of.version] = _labels(of), of.failures
        while len(self._failures) > max(_REMEMBERED, len(found)):
            del self._failures[next(iter(self._failures))]
        yield _head("nv_inference_request_failure", "counter", FAILURE_WORDS)
        for _, (labels, failures) in sorted(self._failures.items()):
            for reason in _REASONS:
                yield _line("nv_inference_request_failure", {**labels, "reason": reason}, failures.get(reason, 0))


def _models(found: Iterable[border.ModelStatistics], switches: Switches) -> Iterable[str]:
    versions = list(found)
    cached = [of for of in versions if of.cached]
    families = [(versions, each) for each in PER_MODEL] + [(cached, each) for each in PER_CACHED_MODEL if cached]
    for shown, (family, kind, words, value) in families:
        if not switches.counter_latencies and family.endswith(_CUMULATIVE):
            continue
        yield _head(family, kind, words)
        for of in shown:
            yield _line(family, _labels(of), value(of))


def _latency(found: Iterable[border.ModelStatistics]) -> Iterable[str]:
    yield _head(LATENCY, "histogram", LATENCY_WORDS)
    for of in found:
        labels = _labels(of)
        counts = list(itertools.accumulate(of.latency))
        for bound, count in zip(_LATENCY_BOUNDS, counts, strict=True):
            yield _line(f"{LATENCY}_bucket", {**labels, "le": bound}, count)
        yield _line(f"{LATENCY}_sum", labels, of.success.ns / 1e9)
        yield _line(f"{LATENCY}_count", labels, counts[-1])


def _first_responses(found: Iterable[border.ModelStatistics]) -> Iterable[str]:
    head = _head(FIRST_RESPONSE, "histogram", FIRST_RESPONSE_WORDS)
    for of in found:
        if of.first_response is not None:
            bounds = (*(f"{bound:g}" for bound in of.first_response.bounds_ms), "+Inf")
            counts = list(itertools.accumulate(of.first_response.counts))
            yield head
            for bound, count in zip(bounds, counts, strict=True):
                yield _line(f"{FIRST_RESPONSE}_bucket", {**_labels(of), "le": bound}, count)
            yield _line(f"{FIRST_RESPONSE}_sum", _labels(of), of.first_response.total_ms)
            yield _line(f"{FIRST_RESPONSE}_count", _labels(of), counts[-1])
            head = ""


def _summaries(found: Sequence[border.ModelStatistics]) -> Iterable[str]:
    for name, words in SUMMARIES.items():
        family = f"nv_inference_{name}_summary_us"
        head = _head(family, "summary", words)
        for of in found:
            if name in of.summaries:
                summary = of.summaries[name]
                yield head
                for quantile, value_us in summary.quantiles:
                    shown = "NaN" if math.isnan(value_us) else f"{value_us:g}"
                    yield _line(family, {**_labels(of), "quantile": f"{quantile:g}"}, shown)
                yield _line(f"{family}_sum", _labels(of), summary.total_us)
                yield _line(f"{family}_count", _labels(of), summary.count)
                head = ""


def _labels(of: border.ModelStatistics) -> dict[str, str]:
    """A model's own tags are told apart from the labels that every model has by their first letter."""
    labels = {"model": of.name, "version": of.version, **{f"_{tag}": text for tag, text in of.tags.items()}}
    return {**labels, "gpu_uuid": of.gpu_uuid} if of.gpu_uuid else labels


def _readings(readings: Iterable[machine.Reading]) -> Iterable[str]:
    families: dict[str, list[machine.Reading]] = {}
    for reading in readings:
        families.setdefault(reading.family, []).append(reading)
    for family, members in families.items():
        yield _head(family, members[0].kind, members[0].words)
        for reading in members:
            yield _line(family, reading.labels, reading.value)


def _head(family: str, kind: str, words: str) -> str:
    return f"# HELP {family} {words}\n# TYPE {family} {kind}\n"


def _line(family: str, labels: Mapping[str, str], value: float | str) -> str:
    shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
    return f"{family}{{{shown}}} {value}\n" if shown else f"{family} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
