"""Traces as OpenTelemetry spans, exported over OTLP/HTTP.

Spans go out from a thread of the SDK's own, in batches; what a collector does not take in time is lost, never a request.
The SDK is loaded only where this mode is asked for.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Sequence
from typing import Any

from gpu_worker.engine import border, trace
from gpu_worker.tracing import writer

_EXPORT_TIMEOUT_S = 5.0
_MOST_WAITING = 4096
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class Spans:
    """A place for traces, as `writer.Writer`; one request is a span with its events, its execution and its steps are children."""

    def __init__(self, url: str, resource: Sequence[tuple[str, str]]) -> None:
        """Raises InferenceError UNSUPPORTED where the SDK is not installed."""
        try:
            sdk = importlib.import_module("opentelemetry.sdk.trace")
            export = importlib.import_module("opentelemetry.sdk.trace.export")
            resources = importlib.import_module("opentelemetry.sdk.resources")
            otlp = importlib.import_module(_EXPORTER)
            self._api: Any = importlib.import_module("opentelemetry.trace")
            context = importlib.import_module("opentelemetry.context")
            propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        except ImportError as error:
            message = f"--trace-config mode=opentelemetry needs the extra worker-trace (pip install 'tms[worker-trace]'): {error}"
            raise border.InferenceError(border.ErrorKind.UNSUPPORTED, message) from None
        described = resources.Resource.create({"service.name": "tms-worker", **dict(resource)})
        self._provider = sdk.TracerProvider(resource=described, shutdown_on_exit=False)
        exporter = otlp.OTLPSpanExporter(endpoint=url, timeout=_EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tms-worker")
        self._context = context.Context
        self._propagator = propagation.TraceContextTextMapPropagator()
        self._lock = threading.Lock()
        self._steps: dict[int, list[trace.Trace]] = {}
        # Spans are in wall-clock time; nothing is decided by it.
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def write(self, batch: writer.Batch, each: trace.Trace) -> None:
        """Never blocks. The spans of steps wait for that of their ensemble, which ends after them."""
        del batch
        if each.parent_id:
            self._keep(each)
            return
        carrier = {"traceparent": each.parent} if each.parent else {}
        self._span(each, self._propagator.extract(carrier, context=self._context()), self._api.SpanKind.SERVER)

    def _keep(self, each: trace.Trace) -> None:
        with self._lock:
            if len(self._steps) >= _MOST_WAITING:
                # Steps that ended after their ensemble had failed: nobody asks for them any more.
                del self._steps[next(iter(self._steps))]
            self._steps.setdefault(each.parent_id, []).append(each)

    def _span(self, each: trace.Trace, parent: Any, kind: Any) -> None:
        """A span within another, and those of its steps within that."""
        with self._lock:
            steps = self._steps.pop(each.id, [])
        if not each.events:
            return
        attributes = {
            "triton.model_name": each.model,
            "triton.model_version": int(each.version),
            "triton.trace_id": each.id,
        }
        if each.request_id:
            attributes["triton.request_id"] = each.request_id
        begin_ns, end_ns = each.events[0][1], each.events[-1][1]
        root = self._tracer.start_span(
            "InferRequest",
            context=parent,
            kind=kind,
            attributes=attributes,
            start_time=begin_ns + self._offset_ns,
        )
        for name, at_ns in each.events:
            root.add_event(name, timestamp=at_ns + self._offset_ns)
        self._compute(root, dict(each.events))
        for step in steps:
            self._span(step, self._api.set_span_in_context(root, self._context()), self._api.SpanKind.INTERNAL)
        root.end(end_time=end_ns + self._offset_ns)

    def finish(self, batch: writer.Batch) -> None:
        """Nothing to do: spans leave by themselves."""

    def close(self) -> None:
        """Sends what is left; blocks for a few seconds at most."""
        self._provider.shutdown()

    def _compute(self, root: Any, events: dict[str, int]) -> None:
        if "COMPUTE_START" in events and "COMPUTE_END" in events:
            child = self._tracer.start_span(
                "compute",
                context=self._api.set_span_in_context(root, self._context()),
                start_time=events["COMPUTE_START"] + self._offset_ns,
            )
            child.end(end_time=events["COMPUTE_END"] + self._offset_ns)
