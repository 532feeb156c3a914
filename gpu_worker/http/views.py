"""JSON views of what the engine tells about itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_worker.engine import border


def server(metadata: border.ServerMetadata) -> dict[str, Any]:
    return {"name": metadata.name, "version": metadata.version, "extensions": list(metadata.extensions)}


def model(metadata: border.ModelMetadata) -> dict[str, Any]:
    return {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "inputs": [_tensor(spec) for spec in metadata.inputs],
        "outputs": [_tensor(spec) for spec in metadata.outputs],
    }


def index(entry: border.IndexEntry) -> dict[str, str]:
    shown = {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
    return {key: value for key, value in shown.items() if value}


def trace(settings: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """All texts but the levels, which are an array."""
    return {name: list(values) if name == "trace_level" else values[0] for name, values in settings.items()}


def statistics(of: border.ModelStatistics) -> dict[str, Any]:
    return {
        "name": of.name,
        "version": of.version,
        "last_inference": of.last_inference_ms,
        "inference_count": of.inference_count,
        "execution_count": of.execution_count,
        "inference_stats": {
            "success": _duration(of.success),
            "fail": _duration(of.fail),
            "queue": _duration(of.queue),
            "compute_input": _duration(of.compute_input),
            "compute_infer": _duration(of.compute_infer),
            "compute_output": _duration(of.compute_output),
            "cache_hit": _duration(of.cache_hit),
            "cache_miss": _duration(of.cache_miss),
        },
        "response_stats": {},
        "batch_stats": [_batch(batch) for batch in of.batches],
        "memory_usage": [
            {"type": kind, "id": device, "byte_size": size} for (kind, device), size in of.memory_bytes.items()
        ],
    }


def _tensor(spec: border.TensorMetadata) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _duration(of: border.Duration) -> dict[str, int]:
    return {"count": of.count, "ns": of.ns}


def _batch(of: border.BatchStatistics) -> dict[str, Any]:
    return {
        "batch_size": of.batch_size,
        "compute_input": _duration(of.compute_input),
        "compute_infer": _duration(of.compute_infer),
        "compute_output": _duration(of.compute_output),
    }
