"""Traces as OpenTelemetry spans, exported over OTLP/HTTP.

Spans go out from a thread of the SDK's own, in batches; what a collector does not take in time is lost, never a request.
The SDK is loaded only where this mode is asked for.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any

from gpu_worker.engine import border, trace
from gpu_worker.tracing import writer

_EXPORT_TIMEOUT_S = 5.0
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class Spans:
    """A place for traces, as `writer.Writer`; one request is a span with its events, its execution a child."""

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
        # Spans are in wall-clock time; nothing is decided by it.
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def write(self, batch: writer.Batch, each: trace.Trace) -> None:
        """Never blocks."""
        del batch
        if not each.events:
            return
        carrier = {"traceparent": each.parent} if each.parent else {}
        parent = self._propagator.extract(carrier, context=self._context())
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
            kind=self._api.SpanKind.SERVER,
            attributes=attributes,
            start_time=begin_ns + self._offset_ns,
        )
        for name, at_ns in each.events:
            root.add_event(name, timestamp=at_ns + self._offset_ns)
        self._compute(root, dict(each.events))
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
