"""From an engine's answer to the body of an infer response.

Pure. Must never copy a tensor that goes out as binary.
"""

from __future__ import annotations

from typing import Any

from gpu_worker.engine import border
from gpu_worker.http import decoding, jsondata, messages
from gpu_worker.wire import parameters

_LENGTH = b"Inference-Header-Content-Length: %d\r\n"


def encode(answer: border.InferResponse, wishes: decoding.Wishes) -> messages.Response:
    """The response in JSON, followed by the binary outputs. Raises InferenceError for what JSON cannot carry."""
    binary: list[border.Buffer] = []
    outputs = [_output(tensor, wishes, binary) for tensor in answer.outputs]
    is_binary = any(tensor.region is None and wishes.wants_binary(tensor.name) for tensor in answer.outputs)
    body: dict[str, Any] = {"model_name": answer.model_name, "model_version": answer.model_version, "outputs": outputs}
    if answer.id:
        body["id"] = answer.id
    if answer.parameters:
        body["parameters"] = dict(answer.parameters)
    header = jsondata.dump(body)
    if not is_binary:
        return messages.Response(200, [header], messages.JSON)
    return messages.Response(200, [header, *binary], messages.OCTETS, _LENGTH % len(header))


def _output(tensor: border.Tensor, wishes: decoding.Wishes, binary: list[border.Buffer]) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    if tensor.region is not None:
        shown["parameters"] = parameters.region_parameters(tensor.region)
    elif wishes.wants_binary(tensor.name):
        shown["parameters"] = {"binary_data_size": len(tensor.data)}
        if len(tensor.data):
            binary.append(tensor.data)
    else:
        shown["data"] = jsondata.from_wire(tensor)
    return shown
