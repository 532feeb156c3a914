"""JSON views of what the engine tells about itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import message

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


def plain(value: message.Message) -> dict[str, Any]:
    """A message as JSON with its own field names, enum names, defaults printed, and 64-bit integers as numbers."""
    return {
        field.name: _field(value, field)
        for field in value.DESCRIPTOR.fields
        if not field.has_presence or value.HasField(field.name)
    }


def _field(value: message.Message, field: Any) -> Any:
    content = getattr(value, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        kind = entry.fields_by_name["value"]
        return {str(key): _value(content[key], kind) for key in sorted(content)}
    if field.is_repeated:
        return [_value(item, field) for item in content]
    return _value(content, field)


def _value(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return value


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
