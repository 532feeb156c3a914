"""What the engine asks of a framework: load a model for a device, run it.

Values and protocols only. An implementation never falls back to another device on its own.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt


class LoadFailed(Exception):
    """A model cannot be served as asked; the message names the reason."""


class RunFailed(Exception):
    """One execution failed; the model itself is still good."""


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """Where an instance runs: kind `CPU` or `GPU`, and the ordinal of the GPU."""

    kind: str = "CPU"
    ordinal: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output as the model itself declares it, -1 where a dimension varies, None where its rank is open."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None
    optional: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """What a model's code may know of itself: its version's and its own directory, its completed configuration in JSON.

    `kind` is that of the instance, as configurations write it.
    """

    model: str
    version: str
    directory: pathlib.Path
    config: str
    instance: str
    kind: str


@dataclasses.dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a model runs.

    Thread counts of 0 leave the choice to the framework. `graph_level` None is the framework's default. `share` lets the
    instances on a device share one program where the framework would rather not. `device_options` go to the device's
    provider, `session_entries` to the session, `run_options` along with each run. `card` is for models that are code.
    """

    intra_op_threads: int = 0
    inter_op_threads: int = 0
    parallel: bool = False
    graph_level: int | None = None
    memory_arena: bool = True
    memory_pattern: bool = True
    share: bool = False
    device_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    session_entries: Mapping[str, str] = dataclasses.field(default_factory=dict)
    run_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    card: Card | None = None


class Program(Protocol):
    """A loaded model version on one device. `run` may be called from several threads where `shareable`."""

    @property
    def inputs(self) -> Sequence[TensorInfo]: ...

    @property
    def outputs(self) -> Sequence[TensorInfo]: ...

    @property
    def shareable(self) -> bool: ...

    @property
    def steady(self) -> bool:
        """Whether two runs on inputs of equal shapes, on a CPU, do the same work."""
        return False

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        """The outputs asked for, in that order, contiguous and owning their memory.

        BYTES tensors are object arrays of `str`, BF16 tensors raw uint16. Raises RunFailed.
        """
        ...


class Tensor(Protocol):
    """A tensor in its wire form: little-endian and row-major, BYTES elements after their 4-byte lengths."""

    @property
    def name(self) -> str: ...

    @property
    def datatype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def data(self) -> bytes | bytearray | memoryview: ...


@dataclasses.dataclass(slots=True)
class Given:
    """An output in its wire form."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """A response: as many outputs as the model made, none of them without being asked for."""

    tensors: Sequence[Given] = ()
    parameters: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A request that the model refused, or that was lost with it; `kind` as `border.ErrorKind` names it."""

    message: str
    kind: str = "internal"


Response = Outputs | Refused


class Query(Protocol):
    """One request of a batch, as a program sees it that answers requests one by one."""

    @property
    def id(self) -> str: ...

    @property
    def inputs(self) -> Sequence[Tensor]: ...

    @property
    def outputs(self) -> Sequence[str]: ...

    @property
    def parameters(self) -> Mapping[str, bool | int | float | str]: ...

    def heed(self, cancel: Callable[[], None] | None) -> None:
        """`cancel` is to be called when nobody waits any more; None ends that. At once where it is so already."""
        ...

    def answer(self, response: Response | None, *, final: bool) -> None:
        """What was not told with the batch; on the event loop, after the batch. None says only that it was all."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Performed:
    """What a batch came to: a response for each request, None where it answers later, or what failed all of it."""

    responses: Sequence[Response | None] = ()
    failure: Refused | None = None


class Performer(Program, Protocol):
    """A program that takes requests as they are and answers each, maybe often, maybe after the batch. Runs one batch at a time."""

    @property
    def ready(self) -> bool:
        """Whether it can run now; the last that `watch` told."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """`changed` is called on the event loop whenever `ready` has changed."""
        ...

    def perform(self, queries: Sequence[Query], done: Callable[[Performed], None]) -> None:
        """Begins a batch, from any thread; `done` is called once, on the event loop, when the next may be given."""
        ...

    def close(self) -> None:
        """Ends it once all its requests are answered. Blocks until its memory is free, but on the event loop."""
        ...


class Runtime(Protocol):
    """Loads models of one framework."""

    def load(self, model: pathlib.Path, device: Device, options: SessionOptions) -> Program:
        """Blocks until the model can run. Raises LoadFailed, also where the device cannot be used."""
        ...

    def gpus(self) -> int:
        """How many GPUs this framework can really use here."""
        ...

    def uuid(self, device: Device) -> str:
        """The name that NVML knows a GPU by, `GPU-...`; empty for a CPU and where it cannot be told."""
        ...

    def capability(self, device: Device) -> str:
        """The compute capability of a GPU, such as `8.0`; empty for a CPU and where it cannot be told."""
        ...

    def complete(self, model: pathlib.Path, options: SessionOptions) -> str | None:
        """The configuration in JSON as the model's code completes it; None where it does not. Raises LoadFailed."""
        ...
