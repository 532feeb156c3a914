"""The trace of one request: what happened when, and with which tensors.

Collects references and times only; how they are written is another's. Must cost nothing where nobody traces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from gpu_worker.engine import border, statistics, tensors


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class Trace:
    """Events are (name, monotonic nanoseconds), tensors (activity, tensor). Used by one thread at a time."""

    id: int
    model: str
    version: str
    request_id: str
    timestamps: bool
    tensors: bool
    done: Callable[[Trace], None]
    parent: str = ""
    events: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    seen: list[tuple[str, border.Tensor]] = dataclasses.field(default_factory=list)

    def stamp(self, name: str, at_ns: int) -> None:
        if self.timestamps:
            self.events.append((name, at_ns))

    def show(self, activity: str, found: Iterable[border.Tensor]) -> None:
        """Notes the tensors whose data is in the message; what is in shared memory is the client's to look at."""
        if self.tensors:
            self.seen += ((activity, tensor) for tensor in found if tensor.region is None)

    def computed(self, started_ns: int, timings: statistics.Timings) -> None:
        """The events of an execution that began then and took so long."""
        at_ns = started_ns
        for name, took_ns in (
            ("COMPUTE_START", 0),
            ("COMPUTE_INPUT_END", timings.input_ns),
            ("COMPUTE_OUTPUT_START", timings.infer_ns),
            ("COMPUTE_END", timings.output_ns),
        ):
            at_ns += took_ns
            self.stamp(name, at_ns)

    @property
    def size_bytes(self) -> int:
        """What the noted tensors hold."""
        return sum(tensors.size_bytes(tensor.data) for _, tensor in self.seen)
