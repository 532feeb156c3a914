"""Registered shared memory by name, and the parts of it that requests read and write.

Decides which names are taken and which parts lie inside a region. Must never keep memory that nobody can use any more:
a name and every part in use refer to it, and the last of them to go gives it back. So an unregistered region lives on
for the requests that hold it, and for nobody else. Belongs to the event loop; parts are used from any thread.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, TypeVar

from gpu_worker.engine import border

Described = border.SystemRegion | border.CudaRegion
_Kind = TypeVar("_Kind", border.SystemRegion, border.CudaRegion)
_WORDS = {border.SystemRegion: "system", border.CudaRegion: "CUDA"}


class Memory(Protocol):
    """Opened shared memory, given back once nothing refers to it. Offsets count from the region's first byte."""

    @property
    def region(self) -> Described: ...

    def read(self, offset: int, byte_size: int) -> border.Buffer:
        """A copy of these bytes. Blocks; raises InferenceError where the memory is not there any more."""
        ...

    def write(self, offset: int, data: border.Buffer) -> None:
        """Returns once whoever shares the memory can read the bytes. Blocks and raises as `read`."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A request's share of a region."""

    memory: Memory
    place: border.Region

    def read(self) -> border.Buffer:
        return self.memory.read(self.place.offset, self.place.byte_size)

    def write(self, output: str, data: border.Buffer) -> None:
        """Raises InferenceError INVALID_ARGUMENT, naming both sizes, where `data` of that output does not fit."""
        size_bytes = memoryview(data).nbytes
        if size_bytes > self.place.byte_size:
            raise _invalid(
                f"shared memory size specified with the request for output '{output}' ({self.place.byte_size} bytes) "
                f"should be at least {size_bytes} bytes to hold the results"
            )
        self.memory.write(self.place.offset, data)


class Regions:
    """What is registered; at most `most` regions, since each may hold a file descriptor."""

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._memories: dict[str, Memory] = {}

    def check_free(self, name: str) -> None:
        """Raises InferenceError where no region of that name can be added."""
        if not name:
            raise _invalid("a shared memory region needs a name")
        if name in self._memories:
            raise border.InferenceError(
                border.ErrorKind.ALREADY_EXISTS, f"shared memory region '{name}' already in manager"
            )
        if len(self._memories) >= self._most:
            raise border.InferenceError(
                border.ErrorKind.UNAVAILABLE,
                f"{self._most} shared memory regions are registered, which is the most: unregister some",
            )

    def add(self, memory: Memory) -> None:
        """Raises as `check_free`."""
        self.check_free(memory.region.name)
        self._memories[memory.region.name] = memory

    def remove(self, kind: type[_Kind], name: str) -> None:
        """Forgets one region, or with an empty name all of that kind. Raises InferenceError for one of another kind."""
        if not name:
            self._memories = {
                key: memory for key, memory in self._memories.items() if not isinstance(memory.region, kind)
            }
        elif name in self._memories:
            self._one(kind, name)
            del self._memories[name]

    def found(self, kind: type[_Kind], name: str) -> list[_Kind]:
        """The regions of that kind, or the one of that name; see `border.Engine.system_regions` for the errors."""
        if name:
            return [self._one(kind, name)]
        regions = [memory.region for memory in self._memories.values()]
        return sorted((region for region in regions if isinstance(region, kind)), key=lambda region: region.name)

    def part(self, place: border.Region) -> Part:
        """What a request names. Raises InferenceError NOT_FOUND or INVALID_ARGUMENT."""
        memory = self._memories.get(place.name)
        if memory is None:
            raise border.InferenceError(
                border.ErrorKind.NOT_FOUND, f"Unable to find shared memory region: '{place.name}'"
            )
        size_bytes = memory.region.byte_size
        if not 0 <= place.offset <= size_bytes:
            raise _invalid(
                f"Invalid offset for shared memory region: '{place.name}' has {size_bytes} bytes, got {place.offset}"
            )
        if not 0 <= place.byte_size <= size_bytes - place.offset:
            raise _invalid(
                f"Invalid offset + byte size for shared memory region: '{place.name}' has {size_bytes} bytes, got "
                f"{place.offset} + {place.byte_size}"
            )
        return Part(memory, place)

    def _one(self, kind: type[_Kind], name: str) -> _Kind:
        memory = self._memories.get(name)
        if memory is None:
            message = f"Unable to find {_WORDS[kind].lower()} shared memory region: '{name}'"
            raise border.InferenceError(border.ErrorKind.NOT_FOUND, message)
        region = memory.region
        if not isinstance(region, kind):
            found = f"is registered as {_WORDS[type(region)]} shared memory, not {_WORDS[kind]} shared memory"
            raise border.InferenceError(border.ErrorKind.NOT_FOUND, f"The region named '{name}' {found}")
        return region


def _invalid(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)
