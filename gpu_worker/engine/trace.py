"""The trace of one request: what happened when, and with which tensors.

Collects references and times only; how they are written is another's. Must cost nothing where nobody traces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from gpu_worker.engine import border, statistics, tensors


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class Trace:
    """Events are (name, monotonic nanoseconds), tensors (activity, tensor). Used by one thread at a time.

    `parent_id` is the trace of the request that this one is a step of, 0 for none. `owner` is the tracer's own; `timings`
    are those of the execution, once it was.
    """

    id: int
    model: str
    version: str
    request_id: str
    timestamps: bool
    tensors: bool
    done: Callable[[Trace], None]
    parent: str = ""
    parent_id: int = 0
    owner: object = None
    timings: statistics.Timings | None = None
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
        self.timings = timings
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
    def told(self) -> bool:
        """Whether anybody gets to see it."""
        return self.timestamps or self.tensors

    @property
    def size_bytes(self) -> int:
        """What the noted tensors hold."""
        return sum(tensors.size_bytes(tensor.data) for _, tensor in self.seen)


def silent(model: str, version: str) -> Trace:
    """A trace that nobody gets to see; it tells how long an execution took."""
    return Trace(id=0, model=model, version=version, request_id="", timestamps=False, tensors=False, done=_unseen)


def _unseen(each: Trace) -> None:
    del each
