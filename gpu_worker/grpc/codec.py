"""Between the messages of package `inference` and the border's values.

Pure. Must never accept data that does not fit its datatype, nor data given in two ways.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpu_worker.engine import border
from gpu_worker.wire import datatypes, parameters
from protos.inference.v2 import predict_pb2

# The one field of InferTensorContents that fits a datatype; FP16 and BF16 have none.
_FIELDS = {
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
FINAL = "triton_final_response"
"""The parameter that tells the last answer to a request of a stream."""

_InputTensor = predict_pb2.ModelInferRequest.InferInputTensor
_RESERVED = (parameters.EMPTY_FINAL_RESPONSE,)


def decode(
    message: predict_pb2.ModelInferRequest, raw: Sequence[border.Buffer], reply: border.Reply
) -> border.InferRequest:
    """The request in `message`, whose raw_input_contents are in `raw`, be they of the message or not.

    Raises InferenceError INVALID_ARGUMENT or UNSUPPORTED, naming what is at fault.
    """
    began_ns = time.monotonic_ns()
    given = _parameters(message.parameters, "request")
    parameters.check(given, reserved=_RESERVED)
    return border.InferRequest(
        message.model_name,
        parameters.check_version(message.model_version),
        message.id,
        _inputs(message, raw),
        [_output(output) for output in message.outputs],
        given,
        reply,
        received=border.Received("GRPC", began_ns, time.monotonic_ns()),
    )


def encode(answer: border.InferResponse) -> predict_pb2.ModelInferResponse:
    """The answer; all its tensors are raw, whatever the request used."""
    response = describe(answer)
    response.raw_output_contents.extend(bytes(tensor.data) for tensor in answer.outputs)
    return response


def describe(answer: border.InferResponse) -> predict_pb2.ModelInferResponse:
    """The answer without its raw_output_contents, which are the message's last field."""
    response = predict_pb2.ModelInferResponse(
        model_name=answer.model_name, model_version=answer.model_version, id=answer.id
    )
    for tensor in answer.outputs:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if tensor.region is not None:
            for name, value in parameters.region_parameters(tensor.region).items():
                set_parameter(output.parameters[name], value)
    for name, value in answer.parameters.items():
        set_parameter(response.parameters[name], value)
    return response


def set_parameter(parameter: predict_pb2.InferParameter, value: border.Parameter) -> None:
    """Sets the member of the oneof that fits `value`."""
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, str):
        parameter.string_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    elif value < 2**63:
        parameter.int64_param = value
    else:
        parameter.uint64_param = value


def _inputs(message: predict_pb2.ModelInferRequest, raw: Sequence[border.Buffer]) -> list[border.Tensor]:
    places = [_region(tensor) if tensor.parameters else None for tensor in message.inputs]
    unshared = places.count(None)
    if raw and len(raw) != unshared:
        raise datatypes.refused(
            f"expected one raw_input_contents entry for each of {unshared} inputs, got "
            f"{len(raw)}, for model '{message.model_name}'"
        )
    rest = iter(raw)
    tensors = []
    for tensor, place in zip(message.inputs, places, strict=True):
        if place is not None:
            tensors.append(_shared(message.model_name, tensor, place))
        elif raw:
            tensors.append(_raw(message.model_name, tensor, next(rest)))
        else:
            tensors.append(_typed(message.model_name, tensor))
    parameters.check_unique("input", [tensor.name for tensor in tensors])
    return tensors


def _region(tensor: _InputTensor) -> border.Region | None:
    where = f"input '{tensor.name}'"
    return parameters.region(where, _parameters(tensor.parameters, where))


def _shared(model: str, tensor: _InputTensor, place: border.Region) -> border.Tensor:
    if tensor.HasField("contents"):
        raise datatypes.refused(
            f"contents field must not be specified when using shared memory for '{tensor.name}' for model '{model}'"
        )
    return border.Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), b"", place)


def _raw(model: str, tensor: _InputTensor, data: border.Buffer) -> border.Tensor:
    if tensor.HasField("contents"):
        raise datatypes.refused(
            "contents field must not be specified when using raw_input_contents "
            f"for '{tensor.name}' for model '{model}'"
        )
    return border.Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)


def _typed(model: str, tensor: _InputTensor) -> border.Tensor:
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    count = datatypes.element_count(name, datatype, shape)
    field = _FIELDS.get(datatype)
    if field is None:
        raise datatypes.refused(f"{datatype} data of input '{name}' must be given as raw_input_contents")
    for found, _value in tensor.contents.ListFields():
        if found.name != field:
            raise datatypes.refused(
                f"unexpected explicit tensor data for input tensor '{name}' for model '{model}': "
                f"{datatype} takes {field}, got {found.name}"
            )
    values = getattr(tensor.contents, field)
    if len(values) != count:
        raise datatypes.refused(
            f"expected {count} elements in {field} of input tensor '{name}' for model '{model}', got {len(values)}"
        )
    return border.Tensor(name, datatype, shape, _pack(name, datatype, values))


def _pack(name: str, datatype: str, values: Any) -> bytes:
    if datatype == "BYTES":
        return datatypes.pack_bytes(values)
    try:
        return np.fromiter(values, datatypes.NUMPY[datatype], len(values)).tobytes()
    except OverflowError as error:
        raise datatypes.refused(f"a value of input '{name}' is out of the range of {datatype}") from error


def _output(output: predict_pb2.ModelInferRequest.InferRequestedOutputTensor) -> border.RequestedOutput:
    if not output.parameters:
        return border.RequestedOutput(output.name)
    return parameters.requested_output(output.name, _parameters(output.parameters, f"output '{output.name}'"))


def _parameters(found: Mapping[str, predict_pb2.InferParameter], where: str) -> dict[str, border.Parameter]:
    given: dict[str, border.Parameter] = {}
    for name, parameter in found.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise datatypes.refused(f"parameter '{name}' of {where} has an invalid type: no value is set")
        given[name] = getattr(parameter, choice)
    return given
