"""A description of the HTTP API after OpenAPI 3.1, made from the table of routes. Pure, and not served: a page holds it.

Decides what is promised of each endpoint: which bodies it takes, which statuses it answers with and what they carry.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_worker.http import openapi_schemas as schemas
from gpu_worker.http import routes
from gpu_worker.http.routes import Endpoint
from gpu_worker.wire import control as wire_control

_JSON = "application/json"
_ANY = "application/octet-stream"
_EVENTS = "text/event-stream"
_HEADER_BYTES = "Inference-Header-Content-Length"
_WORDS = {
    400: "The request is refused; `error` says why, and what to do.",
    404: "There is no such thing.",
    405: "The path takes other methods, which `Allow` names.",
    408: "The request took too long to arrive.",
    413: "The body is larger than `--http-max-input-size`.",
    417: "Only `Expect: 100-continue` can be met.",
    431: "The head of the request is too large.",
    500: "What was asked for failed; the server serves on.",
    501: "This server does not support it.",
    503: "Not now: too much is in flight, the server stops, or this call is not open to everybody.",
}
_ALWAYS = (400, 408, 413, 417, 431, 503)
_PARAMETERS = {
    "model": ("The name of a model.", {"type": "string", "minLength": 1}),
    "version": ("A version of it, in digits.", {"type": "string", "pattern": "^[0-9]+$"}),
    "region": ("The name of a region of shared memory.", {"type": "string", "minLength": 1}),
    "any": ("The name of a repository, which cannot be chosen here.", {"type": "string", "minLength": 1}),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What is promised of one endpoint: `answer` names the schema of its success, `body` that of what it takes."""

    words: str
    answer: str = ""
    body: str = ""
    failures: tuple[int, ...] = ()
    guarded: bool = False
    changes: bool = False


_CALLS: Mapping[Endpoint, _Call] = {
    Endpoint.LIVE: _Call(words="Whether the process lives: 200, else 400."),
    Endpoint.READY: _Call(words="Whether the server is ready for inferences: 200, else 400."),
    Endpoint.SERVER: _Call(words="Name, version and extensions of the server.", answer="ServerMetadata"),
    Endpoint.MODEL: _Call(words="Inputs and outputs of a model.", answer="ModelMetadata", failures=(404,)),
    Endpoint.MODEL_READY: _Call(words="Whether a model is ready for inferences: 200, else 400."),
    Endpoint.INFER: _Call(
        words="An inference: JSON, or JSON and binary tensors behind it, or the bytes of a single input.",
        answer="InferResponse",
        body="InferRequest",
        failures=(404, 500, 501),
    ),
    Endpoint.CONFIG: _Call(words="The whole configuration of a model.", answer="ModelConfig", failures=(404,)),
    Endpoint.STATISTICS: _Call(words="What models did so far.", answer="Statistics"),
    Endpoint.INDEX: _Call(words="The models of the repositories.", answer="Index", body="IndexRequest", guarded=True),
    Endpoint.LOAD: _Call(
        words="Loads a model, or loads it anew.", body="LoadRequest", failures=(404, 500, 501), guarded=True
    ),
    Endpoint.UNLOAD: _Call(words="Unloads a model.", body="UnloadRequest", failures=(404, 500, 501), guarded=True),
    Endpoint.LEAVE: _Call(words="Sends the clients of a model, or all, elsewhere.", guarded=True),
    Endpoint.GENERATE: _Call(
        words="An inference in plain words.",
        answer="GenerateResponse",
        body="GenerateRequest",
        failures=(404, 500, 501),
    ),
    Endpoint.GENERATE_STREAM: _Call(
        words="The same as a stream of events: each holds a response, or the error that ends the stream.",
        answer=_EVENTS,
        body="GenerateRequest",
        failures=(404, 500, 501),
    ),
    Endpoint.TRACE: _Call(
        words="What is traced, and how.", answer="TraceSettings", body="TraceRequest", guarded=True, changes=True
    ),
    Endpoint.LOGGING: _Call(
        words="What is logged, and how.", answer="LogSettings", body="LogRequest", guarded=True, changes=True
    ),
    Endpoint.SYSTEM_REGIONS: _Call(
        words="Registered regions of system shared memory.", answer="SystemRegions", failures=(404,)
    ),
    Endpoint.SYSTEM_REGISTER: _Call(words="Registers a region of system shared memory.", body="SystemRegion"),
    Endpoint.SYSTEM_UNREGISTER: _Call(words="Forgets one region of system shared memory, or all."),
    Endpoint.CUDA_REGIONS: _Call(words="Registered regions of CUDA memory.", answer="CudaRegions", failures=(404,)),
    Endpoint.CUDA_REGISTER: _Call(words="Registers a region of CUDA memory.", body="CudaRegion", failures=(500, 501)),
    Endpoint.CUDA_UNREGISTER: _Call(words="Forgets one region of CUDA memory, or all."),
    Endpoint.NAMED_REPOSITORY: _Call(words="Naming a repository is not supported."),
}


def document(version: str) -> dict[str, Any]:
    """The description; `version` is the API's own."""
    paths: dict[str, dict[str, Any]] = {}
    for verbs, pattern, endpoint in routes.PATTERNS:
        # The first pattern that matches wins, and so does the first of two that are the same.
        paths.setdefault(f"/{pattern}", {verb.decode().lower(): _operation(pattern, endpoint, verb) for verb in verbs})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tms-worker",
            "version": version,
            "description": "The V2 inference protocol (Open Inference Protocol) over HTTP, with Triton's extensions.",
        },
        "paths": paths,
        "components": {"schemas": schemas.components()},
    }


def _operation(pattern: str, endpoint: Endpoint, verb: bytes) -> dict[str, Any]:
    call = _CALLS[endpoint]
    changes = verb == b"POST"
    found: dict[str, Any] = {
        "operationId": "_".join((verb.decode().lower(), *re.findall(r"[a-z0-9_]+", pattern))),
        "summary": call.words,
        "parameters": list(_parameters(pattern, endpoint, guarded=call.guarded and (changes or not call.changes))),
        "responses": _responses(call, endpoint, versioned="{version}" in pattern),
    }
    if call.body and changes and endpoint not in routes.UNSERVED:
        found["requestBody"] = _body(call, endpoint)
    return found


def _parameters(pattern: str, endpoint: Endpoint, *, guarded: bool) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", pattern):
        words, schema = _PARAMETERS[name]
        yield {"name": name, "in": "path", "required": True, "description": words, "schema": schema}
    if endpoint is Endpoint.INFER:
        words = "Bytes of the JSON at the start of the body, where binary tensors stand behind it."
        schema = {"type": "integer", "minimum": 0}
        yield {"name": _HEADER_BYTES, "in": "header", "required": False, "description": words, "schema": schema}
    if guarded:
        words = "The token of `--control-token-file`, where there is one."
        yield {
            "name": wire_control.HEADER,
            "in": "header",
            "required": False,
            "description": words,
            "schema": {"type": "string"},
        }


def _body(call: _Call, endpoint: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": _reference(call.body)}}
    if endpoint is Endpoint.INFER:
        content[_ANY] = {"schema": {"type": "string", "format": "binary"}}
    required = (*routes.INFERRING, Endpoint.SYSTEM_REGISTER, Endpoint.CUDA_REGISTER)
    return {"required": endpoint in required, "content": content}


def _responses(call: _Call, endpoint: Endpoint, *, versioned: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if endpoint not in routes.UNSERVED:
        found["200"] = {"description": "Done."}
        if call.answer == _EVENTS:
            found["200"]["content"] = {_EVENTS: {"schema": _reference("GenerateEvent")}}
        elif call.answer:
            found["200"]["content"] = {_JSON: {"schema": _reference(call.answer)}}
        if endpoint is Endpoint.INFER:
            found["200"]["content"][_ANY] = {"schema": {"type": "string", "format": "binary"}}
    failures = (501,) if endpoint in routes.UNSERVED else call.failures
    # A version that is no number makes no path.
    for status in sorted({*_ALWAYS, 405, *failures, *((404,) if versioned else ())}):
        found[str(status)] = {"description": _WORDS[status]}
        # Health is told by the status alone.
        if not (status == 400 and endpoint in (Endpoint.LIVE, Endpoint.READY)):
            found[str(status)]["content"] = {_JSON: {"schema": _reference("Error")}}
    return found


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
