"""The messages of the HTTP API as JSON Schema (draft 2020-12). Pure.

Answers are described closely: a member that is not named here is not sent. Requests are described as clients should write
them; what else is taken is said where it is read.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor

from gpu_worker.wire import datatypes
from protos.inference.v2 import model_config_pb2

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SHAPE: Schema = {"type": "array", "items": _COUNT}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["boolean", "number", "string"]}}
_LEVELS: Schema = {"type": "array", "items": {"enum": ["OFF", "TIMESTAMPS", "TENSORS"]}, "minItems": 1}
_CLEARED: Schema = {"type": ["string", "integer", "null"]}

_SCALARS = {
    descriptor.FieldDescriptor.CPPTYPE_STRING: _TEXT,
    descriptor.FieldDescriptor.CPPTYPE_BOOL: _FLAG,
    descriptor.FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    descriptor.FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
}


def components() -> dict[str, Schema]:
    """Schemas by name."""
    found = {**_about_models(), **_inference(), **_control(), **_settings(), **_regions()}
    _add_message(model_config_pb2.ModelConfig.DESCRIPTOR, found)
    return dict(sorted(found.items()))


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None, *, closed: bool = True) -> Schema:
    found: Schema = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        found["required"] = list(required)
    if closed:
        found["additionalProperties"] = False
    return found


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _about_models() -> dict[str, Schema]:
    duration = _reference("Duration")
    parts = ("compute_input", "compute_infer", "compute_output")
    kinds = ("success", "fail", "queue", *parts, "cache_hit", "cache_miss")
    statistics = {
        "name": _TEXT,
        "version": _TEXT,
        "last_inference": _COUNT,
        "inference_count": _COUNT,
        "execution_count": _COUNT,
        "inference_stats": _object(dict.fromkeys(kinds, duration)),
        "response_stats": {"type": "object"},
        "batch_stats": _list(_object({"batch_size": _COUNT, **dict.fromkeys(parts, duration)})),
        "memory_usage": _list(_object({"type": _TEXT, "id": {"type": "integer"}, "byte_size": _COUNT})),
    }
    tensor = {"name": _TEXT, "datatype": _reference("Datatype"), "shape": _list({"type": "integer", "minimum": -1})}
    return {
        "Error": _object({"error": {"type": "string", "minLength": 1}}),
        "Datatype": {"enum": sorted({*datatypes.SIZES, "BYTES"})},
        "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
        "TensorMetadata": _object(tensor),
        "ModelMetadata": _object(
            {
                "name": _TEXT,
                "versions": _list({"type": "string", "pattern": "^[0-9]+$"}),
                "platform": _TEXT,
                "inputs": _list(_reference("TensorMetadata")),
                "outputs": _list(_reference("TensorMetadata")),
            }
        ),
        "Duration": _object({"count": _COUNT, "ns": _COUNT}),
        "Statistics": _object({"model_stats": _list(_object(statistics))}),
    }


def _inference() -> dict[str, Schema]:
    tensor = {"name": _TEXT, "datatype": _reference("Datatype"), "shape": _SHAPE}
    given = {"parameters": _PARAMETERS, "data": {"type": "array"}}
    wished = _object({"name": _TEXT}, {"parameters": _PARAMETERS}, closed=False)
    answer = {"model_name": _TEXT, "model_version": _TEXT, "outputs": _list(_object(tensor, given))}
    request = {"inputs": _list(_object(tensor, given, closed=False))}
    return {
        "InferRequest": _object(
            request, {"id": _TEXT, "parameters": _PARAMETERS, "outputs": _list(wished)}, closed=False
        ),
        "InferResponse": _object(answer, {"id": _TEXT, "parameters": _PARAMETERS}),
        "GenerateRequest": {"type": "object"},
        "GenerateEvent": _object({"data": _TEXT}, closed=False),
        "GenerateResponse": _object({"model_name": _TEXT, "model_version": _TEXT}, closed=False),
    }


def _control() -> dict[str, Schema]:
    entry = _object(
        {"name": _TEXT},
        {
            "version": _TEXT,
            "state": {"enum": ["READY", "UNAVAILABLE", "LOADING", "UNLOADING", "UNKNOWN"]},
            "reason": _TEXT,
        },
    )
    settings: Schema = {"type": "object", "additionalProperties": {"type": ["boolean", "number", "string"]}}
    return {
        "IndexRequest": _object({}, {"ready": _FLAG}, closed=False),
        "Index": _list(entry),
        "LoadRequest": _object({}, {"parameters": settings}, closed=False),
        "UnloadRequest": _object({}, {"parameters": _object({}, {"unload_dependents": _FLAG})}, closed=False),
    }


def _settings() -> dict[str, Schema]:
    flags = dict.fromkeys(("log_info", "log_warning", "log_error"), _FLAG)
    level: Schema = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
    layout: Schema = {"type": "string"}
    log = {**flags, "log_verbose_level": level, "log_format": layout}
    traced = dict.fromkeys(("trace_rate", "trace_count", "log_frequency"), _TEXT)
    return {
        "LogSettings": _object({"log_file": _TEXT, **log}),
        "LogRequest": _object({}, log),
        "TraceSettings": _object({"trace_file": _TEXT, "trace_level": _LEVELS, "trace_mode": _TEXT, **traced}),
        "TraceRequest": _object(
            {},
            {"trace_level": {"anyOf": [_LEVELS, {"type": "null"}]}, **dict.fromkeys(traced, _CLEARED)},
        ),
    }


def _regions() -> dict[str, Schema]:
    sizes = {"offset": _COUNT, "byte_size": _COUNT}
    device = {"device_id": _COUNT, "byte_size": _COUNT}
    handle = _object({"b64": {"type": "string", "contentEncoding": "base64"}})
    return {
        "SystemRegion": _object({"key": _TEXT, "byte_size": _COUNT}, {"offset": _COUNT}),
        "SystemRegions": _list(_object({"name": _TEXT, "key": _TEXT, **sizes})),
        "CudaRegion": _object({"raw_handle": handle, **device}),
        "CudaRegions": _list(_object({"name": _TEXT, **device})),
    }


def _add_message(message: Any, found: dict[str, Schema]) -> None:
    """The schema of a protobuf message as `views.plain` shows it, and those of all that it holds."""
    if message.name in found:
        return
    found[message.name] = {}  # messages may hold themselves
    always = [field.name for field in message.fields if not field.has_presence]
    schema = _object({field.name: _member(field, found) for field in message.fields})
    found[message.name] = (
        {**schema, "required": always} if always else {k: v for k, v in schema.items() if k != "required"}
    )


def _member(field: Any, found: dict[str, Schema]) -> Schema:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _single(entry.fields_by_name["value"], found)}
    return _list(_single(field, found)) if field.is_repeated else _single(field, found)


def _single(field: Any, found: dict[str, Schema]) -> Schema:
    if field.message_type is not None:
        _add_message(field.message_type, found)
        return _reference(field.message_type.name)
    if field.enum_type is not None:
        return {"enum": [value.name for value in field.enum_type.values]}
    return _SCALARS.get(field.cpp_type, {"type": "integer"})
