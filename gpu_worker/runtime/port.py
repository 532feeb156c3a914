"""What the engine asks of a framework: load a model for a device, run it.

Values and protocols only. An implementation never falls back to another device on its own.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
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
class SessionOptions:
    """How a model runs.

    Thread counts of 0 leave the choice to the framework. `graph_level` None is the framework's default. `share` lets the
    instances on a device share one program where the framework would rather not. `device_options` go to the device's
    provider, `session_entries` to the session, `run_options` along with each run.
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
