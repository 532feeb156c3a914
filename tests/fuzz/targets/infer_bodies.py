"""JSON and binary infer bodies: read as they say or refused, and read the same a second time."""

from __future__ import annotations

import json
from typing import Any

from gpu_worker.engine import border
from gpu_worker.http import decoding, plans
from gpu_worker.wire import compression, datatypes

NAME = "bodies"
_METADATA = [
    border.ModelMetadata("m", ("1",), "onnxruntime_onnx", (border.TensorMetadata("A", kind, dims),), ())
    for kind, dims in (("FP32", (-1, 4)), ("BYTES", (1,)), ("INT8", (-1, -1)), ("BF16", (2, 2)))
]
_MOST_BYTES = 2**16


def fuzz(data: bytes) -> None:
    """The first byte says what to do with the rest: where the JSON ends, raw for a model, compressed."""
    how, data = (data[0], data[1:]) if data else (0, b"")
    if how < 4:
        for batched in (False, True):
            _read(lambda batched=batched: decoding.decode_raw(_METADATA[how], data, batched=batched))
    elif how < 8:
        _inflate(data, ("gzip", "deflate", "identity", "br")[how - 4])
    else:
        _decode(data, None if how % 2 else (data.rfind(b"}") + 1) or len(data))


def _decode(data: bytes, json_bytes: int | None) -> None:
    remembering = plans.Plans()
    first = _read(lambda: decoding.decode("m", data, json_bytes))
    for _ in range(2):
        assert _read(lambda: remembering.decode("m", data, json_bytes)) == first
    if isinstance(first, str):
        return
    said = json.loads(data[:json_bytes])
    inputs = said["inputs"]
    assert [(each["name"], each["datatype"], tuple(each["shape"])) for each in inputs] == [each[:3] for each in first]
    for name, datatype, shape, content, region in first:
        if datatype != "BYTES" and region is None and b"binary_data_size" not in data:
            count = datatypes.element_count(name, datatype, shape)
            assert len(content) == count * datatypes.SIZES[datatype]


def _read(decode: Any) -> Any:
    """The tensors, or the words of the refusal."""
    try:
        found: decoding.Inference = decode()
    except border.InferenceError as error:
        assert error.kind in (border.ErrorKind.INVALID_ARGUMENT, border.ErrorKind.UNSUPPORTED)
        assert error.message
        return error.message
    return [(each.name, each.datatype, tuple(each.shape), bytes(each.data), each.region) for each in found.inputs]


def _inflate(data: bytes, encoding: str) -> None:
    try:
        found = compression.inflate(data, encoding, _MOST_BYTES)
    except border.InferenceError as error:
        assert error.kind in (border.ErrorKind.INVALID_ARGUMENT, border.ErrorKind.UNSUPPORTED)
        return
    except OverflowError:
        return
    assert len(found) <= max(_MOST_BYTES, len(data))


def seeds() -> list[bytes]:
    def one(**member: Any) -> bytes:
        return json.dumps({"inputs": [{"name": "A", **member}]}).encode()

    bodies = [
        one(shape=[1, 2], datatype="FP32", data=[[1, 2.5]]),
        one(shape=[2], datatype="BYTES", data=["a", "é"]),
        one(shape=[2], datatype="BOOL", data=[True, 0]),
        one(shape=[1], datatype="INT64", data=[2**62]),
        one(shape=[4], datatype="UINT8", parameters={"binary_data_size": 4}) + b"abcd",
        one(shape=[1], datatype="UINT8", parameters={"shared_memory_region": "r", "shared_memory_byte_size": 1}),
        json.dumps(
            {
                "id": "7",
                "parameters": {"priority": 1, "sequence_id": "s", "timeout": 5, "binary_data_output": True},
                "inputs": [{"name": "A", "shape": [0], "datatype": "INT8", "data": []}],
                "outputs": [{"name": "Y", "parameters": {"classification": 2, "binary_data": False}}],
            }
        ).encode(),
    ]
    packed = [
        bytes([how]) + b"".join(map(bytes, compression.deflate([b"abc" * 9], name)))
        for how, name in ((4, "gzip"), (5, "deflate"))
    ]
    return (
        [bytes([how]) + body for body in bodies for how in (8, 9)]
        + packed
        + [bytes([how]) + bytes(16) for how in range(4)]
    )
