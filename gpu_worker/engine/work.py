"""A request on its way through the engine: checked, timed and bound to the loop it came from."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Hashable

from gpu_worker.engine import border


@dataclasses.dataclass(slots=True, eq=False)
class Work:
    """One admitted request.

    `inputs` follow the order of the model's inputs, None where an optional one was left out. `outputs` None means all.
    `size` counts items (the batch dimension, 1 where there is none). Works of equal `key` may share a batch. Times are
    nanoseconds of the monotonic clock.
    """

    request: border.InferRequest
    loop: asyncio.AbstractEventLoop
    arrival_ns: int
    inputs: tuple[border.Tensor | None, ...]
    outputs: tuple[border.RequestedOutput, ...] | None
    size: int
    key: Hashable
    deadline_ns: int | None
