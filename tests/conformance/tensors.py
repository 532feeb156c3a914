"""Requests for inference, built by hand: the JSON and the messages of the cases. Pure."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpu_worker.wire import datatypes
from protos.inference.v2 import predict_pb2
from tests.conformance import case

SAMPLES: Mapping[str, tuple[Any, ...]] = {
    "BOOL": (True, False, True),
    "UINT8": (0, 1, 255),
    "UINT16": (0, 1, 2**16 - 1),
    "UINT32": (0, 1, 2**32 - 1),
    "UINT64": (0, 1, 2**64 - 1),
    "INT8": (-128, 0, 127),
    "INT16": (-(2**15), 0, 2**15 - 1),
    "INT32": (-(2**31), 0, 2**31 - 1),
    "INT64": (-(2**63), 0, 2**63 - 1),
    "FP16": (-1.5, 0.0, 65504.0),
    "FP32": (-1.5, 0.1, 3.0e38),
    "FP64": (-1.5, 0.1, 1.0e300),
    "BYTES": (b"one", b"", "zwölf".encode()),
    "BF16": (-1.5, 0.0, 2.0),
}
FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
JSON_TYPES = tuple(FIELDS)


def wire(datatype: str, values: Sequence[Any]) -> bytes:
    """The tensor's bytes."""
    if datatype == "BYTES":
        return datatypes.pack_bytes(values)
    if datatype == "FP16":
        return np.array(values, "<f2").tobytes()
    if datatype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return np.array(values, datatypes.NUMPY[datatype]).tobytes()


def plain(datatype: str, values: Sequence[Any]) -> list[Any]:
    """The values as JSON has them."""
    return [value.decode() if datatype == "BYTES" else value for value in values]


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any = None, **more: Any) -> dict[str, Any]:
    """An input as JSON; with `binary_data_size` or another parameter in `more`."""
    made: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    return made | ({} if data is None else {"data": data}) | ({"parameters": more} if more else {})


def output(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name} | ({"parameters": parameters} if parameters else {})


def body(inputs: Sequence[object], outputs: Sequence[object] = (), **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs)} | ({"outputs": list(outputs)} if outputs else {}) | more


def ask(
    model: str, told: object, binary: bytes = b"", *, version: str = "", headers: Mapping[str, str] | None = None
) -> case.Http:
    """An infer request; `binary` follows the JSON, whose length a header then tells."""
    path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    length = {"Inference-Header-Content-Length": str(len(text))} if binary else {}
    return case.post(path, text + binary, {**length, **(headers or {})})


@dataclasses.dataclass(frozen=True)
class Raw:
    """An input that travels in raw_input_contents."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes


@dataclasses.dataclass(frozen=True)
class Typed:
    """An input that travels in contents; `field` where it is not the one of its datatype."""

    name: str
    datatype: str
    shape: Sequence[int]
    values: Sequence[Any]
    field: str = ""


def request(
    model: str,
    inputs: Sequence[Raw | Typed],
    outputs: Sequence[str] = (),
    *,
    version: str = "",
    request_id: str = "",
    parameters: Mapping[str, Any] | None = None,
) -> predict_pb2.ModelInferRequest:
    """A ModelInferRequest."""
    made = predict_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for each in inputs:
        added = made.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        if isinstance(each, Raw):
            made.raw_input_contents.append(each.data)
        else:
            getattr(added.contents, each.field or FIELDS[each.datatype]).extend(each.values)
    for name in outputs:
        made.outputs.add(name=name)
    for key, value in (parameters or {}).items():
        set_parameter(made.parameters[key], value)
    return made


def set_parameter(parameter: Any, value: Any) -> None:
    """Sets the member that fits; a pair names the member itself."""
    if isinstance(value, tuple):
        setattr(parameter, value[0], value[1])
    else:
        kinds = {
            bool: "bool_param",
            int: "int64_param",
            str: "string_param",
            bytes: "bytes_param",
            float: "double_param",
        }
        setattr(parameter, kinds[type(value)], value)


def infer(*arguments: Any, **settings: Any) -> case.Rpc:
    """A ModelInfer call of the request that `request` makes."""
    return case.rpc("ModelInfer", request(*arguments, **settings))


def sample(datatype: str, *, raw: bool = True) -> Raw | Typed:
    """INPUT with the sample values of a datatype."""
    values = SAMPLES[datatype]
    if raw:
        return Raw("INPUT", datatype, [len(values)], wire(datatype, values))
    return Typed("INPUT", datatype, [len(values)], values)


ONE = tensor("INPUT", "FP32", [1], [1.0])
"""An input that id_fp32 takes."""

RAW_ONE = Raw("INPUT", "FP32", [1], wire("FP32", [1.0]))
"""The same for gRPC."""
