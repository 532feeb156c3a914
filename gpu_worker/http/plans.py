"""What infer headers said before: clients send the same JSON again and again, with other tensors behind it.

Decides what is remembered. Must never remember what depends on the tensors, nor more than its bounds.
"""

from __future__ import annotations

import dataclasses

from gpu_worker.engine import border
from gpu_worker.http import decoding

_MOST_PLANS = 1024
_MOST_JSON_BYTES = 2**12


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """A header that was read; `sizes` are the bytes that each input takes of the `size` bytes behind it."""

    found: decoding.Inference
    sizes: tuple[int, ...]
    size: int

    def apply(self, view: memoryview) -> decoding.Inference:
        tensors, offset = [], 0
        for tensor, size in zip(self.found.inputs, self.sizes, strict=True):
            data = view[offset : offset + size]
            tensors.append(border.Tensor(tensor.name, tensor.datatype, tensor.shape, data))
            offset += size
        found = self.found
        return decoding.Inference(found.id, tensors, found.outputs, found.parameters, found.wishes)


class Plans:
    """The plans of one front; may be used from several threads."""

    def __init__(self) -> None:
        self._plans: dict[bytes, _Plan] = {}

    def decode(self, model: str, body: border.Buffer, json_bytes: int | None) -> decoding.Inference:
        """As `decoding.decode`. What it returns is shared but for the tensors, and must not be changed."""
        if json_bytes is None or not 0 < json_bytes <= _MOST_JSON_BYTES:
            return decoding.decode(model, body, json_bytes)
        header = bytes(body[:json_bytes])
        plan = self._plans.get(header)
        if plan is not None and plan.size == len(body) - json_bytes:
            return plan.apply(memoryview(body)[json_bytes:])
        found = decoding.decode(model, body, json_bytes)
        self._remember(header, found, len(body) - json_bytes)
        return found

    def _remember(self, header: bytes, found: decoding.Inference, size: int) -> None:
        """Only where all tensors stand behind the header, and no id makes it one of its kind."""
        sizes = tuple(len(tensor.data) for tensor in found.inputs)
        if found.id or sum(sizes) != size or not all(isinstance(tensor.data, memoryview) for tensor in found.inputs):
            return
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        bare = [dataclasses.replace(tensor, data=b"") for tensor in found.inputs]
        self._plans[header] = _Plan(dataclasses.replace(found, inputs=bare), sizes, size)
