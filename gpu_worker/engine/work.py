"""A request on its way through the engine: checked, timed and bound to the loop it came from."""

from __future__ import annotations

import asyncio
import dataclasses
import types
from collections.abc import Hashable, Mapping
from typing import Any

from gpu_worker.engine import border, regions, tensors, trace

NOTHING: Mapping[Any, regions.Part] = types.MappingProxyType({})
"""What most requests have in shared memory."""


@dataclasses.dataclass(slots=True, eq=False)
class Work:
    """One admitted request.

    `inputs` follow the order of the model's inputs, None where an optional one was left out. `outputs` None means all.
    `size` counts items (the batch dimension, 1 where there is none). Works of equal `key` may share a batch. Times are
    nanoseconds of the monotonic clock. `shared_inputs` (by position) and `shared_outputs` (by name) are in shared memory.
    At `deadline_ns` it is refused, at `delay_ns` it goes behind the others of its `level`.
    Once the request has been read, `strings` are its BYTES inputs and `copied` what lay in shared memory, by position. `cache_key` is there once
    a kept answer was looked for.
    """

    request: border.InferRequest
    loop: asyncio.AbstractEventLoop
    arrival_ns: int
    inputs: tuple[border.Tensor | None, ...]
    outputs: tuple[border.RequestedOutput, ...] | None
    size: int
    key: Hashable
    deadline_ns: int | None
    shared_inputs: Mapping[int, regions.Part]
    shared_outputs: Mapping[str, regions.Part]
    trace: trace.Trace | None = None
    copied: Mapping[int, border.Buffer] | None = None
    strings: Mapping[int, tensors.Array] | None = None
    cache_key: bytes | None = None
    level: int = 0
    delay_ns: int | None = None

    @property
    def classifies(self) -> bool:
        """Whether classes are asked for in the place of an output."""
        return any(output.classification for output in self.outputs or ())

    def bytes_of(self, index: int) -> border.Buffer:
        """The wire form of an input that was given."""
        if self.copied and index in self.copied:
            return self.copied[index]
        tensor = self.inputs[index]
        return b"" if tensor is None else tensor.data
