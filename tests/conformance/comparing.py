"""Tells in which aspects two servers answered a case otherwise.

Pure. Statuses, error texts, JSON, tensors and shared memory are aspects of their own, so that a known difference in one
hides none in another. Tensors are compared as bytes, however they came.
"""

from __future__ import annotations

import dataclasses
import enum
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from google.protobuf import json_format

from gpu_worker.wire import datatypes
from protos.inference.v2 import predict_pb2
from tests.conformance import asking, case

_HEADERS = ("content-type", "content-encoding", "accept-encoding")
_LENGTH = "inference-header-content-length"


class Aspect(enum.Enum):
    STATUS = "status"
    TEXT = "text"
    BODY = "body"
    HEADERS = "headers"
    SHARED = "shared memory"
    START = "start"


@dataclasses.dataclass(frozen=True)
class Known:
    """An answer in the form in which answers are compared."""

    status: str
    text: str
    body: Any
    headers: Mapping[str, str]


def aspects(of: case.Case, ours: asking.Answers, triton: asking.Answers) -> dict[Aspect, str]:
    """The aspects in which the answers differ, each with both sides in words."""
    found: dict[Aspect, str] = {}
    for number, (call, left, right) in enumerate(zip(of.calls, ours.calls, triton.calls, strict=True)):
        shown = call is of.call
        for aspect, words in _differences(of, known(of, call, left), known(of, call, right), shown=shown):
            found.setdefault(aspect, f"call {number}: {words}")
    if ours.shared != triton.shared:
        found[Aspect.SHARED] = f"{ours.shared} != {triton.shared}"
    return found


def known(of: case.Case, call: case.Call, answer: asking.HttpAnswer | asking.RpcAnswer) -> Known:
    """The answer without what is each server's own."""
    if isinstance(answer, asking.HttpAnswer):
        return _http(of, answer)
    one = call.ours if isinstance(call, case.Twin) else call
    assert isinstance(one, case.Rpc)
    return _rpc(of, one, answer)


def _differences(of: case.Case, ours: Known, triton: Known, *, shown: bool) -> Iterator[tuple[Aspect, str]]:
    if ours.status != triton.status:
        yield Aspect.STATUS, f"{ours.status} {ours.text!r} != {triton.status} {triton.text!r}"
    elif ours.text != triton.text and (of.text is case.Text.EXACT or not shown):
        yield Aspect.TEXT, f"{ours.text!r} != {triton.text!r}"
    if ours.status == triton.status and ours.body != triton.body:
        yield Aspect.BODY, f"\n{ours.body}\n!=\n{triton.body}"
    if ours.status == triton.status and ours.headers != triton.headers:
        yield Aspect.HEADERS, f"{ours.headers} != {triton.headers}"


def _http(of: case.Case, answer: asking.HttpAnswer) -> Known:
    # What an empty answer, or an error, says about its type is of no use to anybody.
    names = _HEADERS if answer.status == "200" and answer.body else _HEADERS[1:]
    if answer.status == asking.BROKEN:
        return Known(answer.status, "", None, {})
    headers = {name: answer.headers[name] for name in names if name in answer.headers}
    content = _inflated(answer)
    if "text/event-stream" in headers.get("content-type", ""):
        events = [json.loads(part.removeprefix(b"data: ")) for part in content.split(b"\n\n") if part]
        return Known(answer.status, "", [_masked(of, event) for event in events], headers)
    length = int(answer.headers.get(_LENGTH, len(content)))
    headers |= {_LENGTH: "given"} if _LENGTH in answer.headers else {}
    try:
        told = json.loads(content[:length]) if length else None
    except ValueError:
        return Known(answer.status, "", content, headers)
    if isinstance(told, dict) and set(told) == {"error"}:
        return Known(answer.status, told["error"], None, headers)
    return Known(answer.status, "", _with_tensors(_masked(of, told), content[length:]), headers)


def _inflated(answer: asking.HttpAnswer) -> bytes:
    coding = answer.headers.get("content-encoding", "")
    if coding == "gzip":
        return gzip.decompress(answer.body)
    return zlib.decompress(answer.body) if coding == "deflate" else answer.body


def _with_tensors(told: Any, binary: bytes) -> Any:
    """The data of outputs as the bytes of their tensors; what is left over of `binary` shows too."""
    if not isinstance(told, dict) or not isinstance(told.get("outputs"), list):
        return [told, binary] if binary else told
    offset = 0
    for output in told["outputs"]:
        if "data" in output:
            output["data"] = _wire(output["datatype"], output["data"])
        elif size := output.get("parameters", {}).get("binary_data_size", 0):
            output["data"] = binary[offset : offset + size]
            offset += size
    return {**told, "left over": binary[offset:]}


def _wire(datatype: str, data: list[Any]) -> bytes:
    if datatype == "BYTES":
        return datatypes.pack_bytes([str(element).encode() for element in data])
    return np.array(data, datatypes.NUMPY[datatype]).tobytes()


def _rpc(of: case.Case, call: case.Rpc, answer: asking.RpcAnswer) -> Known:
    name = call.method.rpartition("/")[2]
    if call.method.startswith(f"/{case.SERVICE}/") and name in _METHODS:
        told = [_masked(of, _plain(name, each)) for each in answer.messages]
    else:
        told = list(answer.messages)
    text = answer.details
    if call.stream and not text:
        text = " | ".join(each["error_message"] for each in told if "error_message" in each)
        told = [{**each, "error_message": "told"} if "error_message" in each else each for each in told]
    return Known(answer.status, text, told, {})


def _plain(method: str, data: bytes) -> dict[str, Any]:
    kind = getattr(predict_pb2, f"{method}Response")
    plain: dict[str, Any] = json_format.MessageToDict(kind.FromString(data), preserving_proto_field_name=True)
    return plain


def _masked(of: case.Case, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _masked(of, inner) for key, inner in value.items() if key not in of.masked}
    return [_masked(of, inner) for inner in value] if isinstance(value, list) else value


_METHODS = frozenset(method.name for method in predict_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods)
