"""What infer headers said before: clients send the same JSON again and again, with other tensors behind it.

Decides what is remembered. Must never remember what depends on the tensors, nor more than its bounds.
"""

from __future__ import annotations

import dataclasses
import itertools

from gpu_worker.engine import border
from gpu_worker.http import decoding

_MOST_PLANS = 1024
_MOST_JSON_BYTES = 2**12
# Bytes of a body that are copied sooner than shared: a view costs more than they do.
_COPIED_BYTES = 2**12


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """The header of a body of `size` bytes; `inputs` are the name, datatype and shape of each, and where it is."""

    found: decoding.Inference
    inputs: tuple[tuple[str, str, tuple[int, ...], slice], ...]
    size: int

    def apply(self, body: border.Buffer) -> decoding.Inference:
        found = self.found
        if self.size > _COPIED_BYTES:
            body = memoryview(body)
        tensors = [border.Tensor(name, datatype, shape, body[part]) for name, datatype, shape, part in self.inputs]
        return decoding.Inference(found.id, tensors, found.outputs, found.parameters, found.wishes, found.form)


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
        if plan is not None and plan.size == len(body):
            return plan.apply(body)
        found = decoding.decode(model, body, json_bytes)
        self._remember(header, found, len(body))
        return found

    def _remember(self, header: bytes, found: decoding.Inference, size: int) -> None:
        """Only where all tensors stand behind the header, and no id makes it one of its kind."""
        ends = tuple(itertools.accumulate((len(tensor.data) for tensor in found.inputs), initial=len(header)))
        if found.id or ends[-1] != size or not all(isinstance(tensor.data, memoryview) for tensor in found.inputs):
            return
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        bare = [dataclasses.replace(tensor, data=b"") for tensor in found.inputs]
        form = None if any(output.region for output in found.outputs) else object()
        inputs = tuple(
            (tensor.name, tensor.datatype, tensor.shape, slice(*part))
            for tensor, part in zip(found.inputs, itertools.pairwise(ends), strict=True)
        )
        self._plans[header] = _Plan(dataclasses.replace(found, inputs=bare, form=form), inputs, size)
