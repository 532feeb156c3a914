"""From an engine's answer to the body of an infer response.

Pure. Must never copy a tensor that goes out as binary.
"""

from __future__ import annotations

from typing import Any

from gpu_worker.engine import border
from gpu_worker.http import decoding, jsondata, messages
from gpu_worker.wire import parameters

_LENGTH = b"Inference-Header-Content-Length: %d\r\n"
_MOST_HEADS = 1024


class Encoder:
    """Remembers the JSON of answers that are binary throughout: it says shapes and sizes only, which come again."""

    def __init__(self) -> None:
        self._heads: dict[object, tuple[bytes, bytes]] = {}

    def quickly(self, answer: border.InferResponse, wishes: decoding.Wishes) -> messages.Response | None:
        """As `encode`, for an answer whose bytes are all in its binary outputs; None for others."""
        if answer.id or answer.parameters or not answer.outputs:
            return None
        forms: list[object] = [answer.model_name, answer.model_version]
        parts: list[border.Buffer] = [b""]
        for tensor in answer.outputs:
            name, data = tensor.name, tensor.data
            if tensor.region is not None or not wishes.by_name.get(name, wishes.binary):
                return None
            forms += (name, tensor.datatype, tensor.shape, len(data))
            parts.append(data)
        head = self._heads.get(key := tuple(forms)) or self._remember(key, answer, wishes)
        parts[0] = head[0]
        return messages.Response(200, parts, messages.OCTETS, head[1])

    def _remember(self, key: object, answer: border.InferResponse, wishes: decoding.Wishes) -> tuple[bytes, bytes]:
        response = encode(answer, wishes)
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        self._heads[key] = found = (bytes(response.parts[0]), response.headers)
        return found


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
