"""What a model version takes and gives, in the words the engine checks requests against.

Frozen values only; built by the loader from a model's completed configuration.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from gpu_worker.engine import batching, border, controls, ragged, shapes, tensors


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    `dims` leaves the batch dimension out, -1 is variable; `labels` name an output's classes. `reshape` is the shape that
    the model has in place of `dims`, None where it is the same. A `ragged` input may differ in shape within a batch; an
    output with a `source` is shared out by the shapes of that input.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    labels: tuple[str, ...] = ()
    reshape: tuple[int, ...] | None = None
    ragged: bool = False
    source: str = ""

    @functools.cached_property
    def fixed(self) -> bool:
        return -1 not in self.dims

    @functools.cached_property
    def type(self) -> tensors.Datatype:
        return tensors.DATATYPES[self.datatype]

    def admits(self, dims: tuple[int, ...]) -> bool:
        if self.fixed:
            return dims == self.dims
        return len(dims) == len(self.dims) and all(want in (-1, got) for want, got in zip(self.dims, dims, strict=True))

    def inward(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        """The model's shape of an input that was admitted with these dims."""
        return dims if self.reshape is None else shapes.carried(self.dims, dims, self.reshape) or ()

    def outward(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The client's dims of an output that the model gave in this shape; None where it does not fit."""
        return shape if self.reshape is None else shapes.carried(self.reshape, shape, self.dims)


@dataclasses.dataclass(frozen=True)
class QueuePolicy:
    """Bounds on waiting: requests queued at most (0: no bound), microseconds waited at most (0: no bound).

    Who has waited so long is refused, or with `delays` goes behind all others of its level.
    """

    max_size: int = 0
    timeout_us: int = 0
    allow_override: bool = False
    delays: bool = False


@dataclasses.dataclass(frozen=True)
class Priorities:
    """Levels 1, the first to be served, to `levels` (0: there are none).

    `default` is the one of who asks for none of them, `policies` are those of levels that have one of their own.
    """

    levels: int = 0
    default: int = 0
    policies: Mapping[int, QueuePolicy] = dataclasses.field(default_factory=dict)

    def level(self, asked: object) -> int:
        """The level of a request that asks for this `priority`."""
        return asked if isinstance(asked, int) and 1 <= asked <= self.levels else self.default


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model version. `max_batch_size` 0 means that shapes are literal and nothing is batched.

    Where it `performs` its programs are `port.Performer`s. `decoupled`: any number of responses to a request.
    With `sequencing` its requests belong to sequences.
    """

    name: str
    version: str
    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: batching.Config
    queue: QueuePolicy = dataclasses.field(default_factory=QueuePolicy)
    priorities: Priorities = dataclasses.field(default_factory=Priorities)
    preserve_ordering: bool = False
    batch_inputs: tuple[ragged.BatchInput, ...] = ()
    performs: bool = False
    decoupled: bool = False
    sequencing: controls.Sequencing | None = None

    @functools.cached_property
    def inputs_by_name(self) -> Mapping[str, TensorSpec]:
        return {tensor.name: tensor for tensor in self.inputs}

    @functools.cached_property
    def outputs_by_name(self) -> Mapping[str, TensorSpec]:
        return {tensor.name: tensor for tensor in self.outputs}

    @functools.cached_property
    def required(self) -> int:
        """How many inputs no request may leave out."""
        return sum(not tensor.optional for tensor in self.inputs)

    @functools.cached_property
    def uniform(self) -> bool:
        """Whether any two requests can share a batch, whatever their shapes."""
        return self.required == len(self.inputs) and all(tensor.fixed or tensor.ragged for tensor in self.inputs)

    @functools.cached_property
    def patient(self) -> bool:
        """Whether all requests are alike to the queue, and may wait for ever."""
        return not (self.priorities.levels or self.queue.timeout_us)

    @functools.cached_property
    def strings(self) -> tuple[int, ...]:
        """The positions of the BYTES inputs."""
        return tuple(index for index, tensor in enumerate(self.inputs) if tensor.datatype == "BYTES")

    @functools.cached_property
    def plain(self) -> bool:
        """Whether the work for a request, and its bytes, depend on its shapes alone."""
        tensors_of = (*self.inputs, *self.outputs)
        return not any(each.datatype == "BYTES" or each.ragged or each.source for each in tensors_of)

    def metadata(self, versions: tuple[str, ...]) -> border.ModelMetadata:
        return border.ModelMetadata(
            self.name,
            versions,
            self.platform,
            tuple(self._described(tensor) for tensor in self.inputs),
            tuple(self._described(tensor) for tensor in self.outputs),
        )

    def _described(self, tensor: TensorSpec) -> border.TensorMetadata:
        shape = (-1, *tensor.dims) if self.max_batch_size else tensor.dims
        return border.TensorMetadata(tensor.name, tensor.datatype, shape)
