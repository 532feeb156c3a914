"""Registered regions: names, bounds, and who keeps them alive."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine import border, regions


class Bytes:
    """Memory of the test's own."""

    def __init__(self, region: regions.Described) -> None:
        self.region = region
        self.content = bytearray(region.byte_size)

    def read(self, offset: int, byte_size: int) -> border.Buffer:
        return bytes(self.content[offset : offset + byte_size])

    def write(self, offset: int, data: border.Buffer) -> None:
        self.content[offset : offset + len(data)] = data


def system(name: str = "s", byte_size: int = 8) -> Bytes:
    return Bytes(border.SystemRegion(name, "/k", 0, byte_size))


def refusal_of(held: regions.Regions, place: border.Region) -> border.InferenceError:
    with pytest.raises(border.InferenceError) as caught:
        held.part(place)
    return caught.value


def test_kinds_share_one_namespace() -> None:
    held = regions.Regions()
    held.add(system())
    with pytest.raises(border.InferenceError, match="shared memory region 's' already in manager") as caught:
        held.add(Bytes(border.CudaRegion("s", 0, 8)))
    assert caught.value.kind is border.ErrorKind.ALREADY_EXISTS
    with pytest.raises(border.InferenceError, match="'s' is registered as system shared memory, not CUDA") as caught:
        held.found(border.CudaRegion, "s")
    assert caught.value.kind is border.ErrorKind.NOT_FOUND
    with pytest.raises(border.InferenceError, match="not CUDA shared memory"):
        held.remove(border.CudaRegion, "s")
    held.remove(border.CudaRegion, "")
    assert [region.name for region in held.found(border.SystemRegion, "")] == ["s"]


def test_a_name_is_needed_and_the_number_bounded() -> None:
    held = regions.Regions(most=1)
    with pytest.raises(border.InferenceError, match="needs a name"):
        held.add(system(""))
    held.add(system())
    with pytest.raises(border.InferenceError, match="1 shared memory regions are registered") as caught:
        held.add(system("t"))
    assert caught.value.kind is border.ErrorKind.UNAVAILABLE


def test_unknown_regions() -> None:
    held = regions.Regions()
    held.remove(border.SystemRegion, "nope")
    assert "Unable to find shared memory region: 'nope'" in refusal_of(held, border.Region("nope", 0, 0)).message
    with pytest.raises(border.InferenceError, match="Unable to find system shared memory region: 'nope'") as caught:
        held.found(border.SystemRegion, "nope")
    assert caught.value.kind is border.ErrorKind.NOT_FOUND


@given(st.integers(-5, 2**64) | st.integers(0, 20), st.integers(-5, 2**64) | st.integers(0, 20), st.integers(1, 16))
def test_parts_lie_inside_their_region_or_are_refused(offset: int, byte_size: int, region_bytes: int) -> None:
    held = regions.Regions()
    held.add(system(byte_size=region_bytes))
    place = border.Region("s", offset, byte_size)
    if offset >= 0 and byte_size >= 0 and offset + byte_size <= region_bytes:
        assert len(held.part(place).read()) == byte_size
    else:
        error = refusal_of(held, place)
        assert error.kind is border.ErrorKind.INVALID_ARGUMENT
        assert error.message.startswith("Invalid offset")


def test_an_output_that_does_not_fit_is_told_with_both_sizes() -> None:
    memory = system(byte_size=8)
    held = regions.Regions()
    held.add(memory)
    part = held.part(border.Region("s", 2, 3))
    part.write("O", b"abc")
    assert bytes(memory.content) == b"\0\0abc\0\0\0"
    with pytest.raises(border.InferenceError, match=r"'O' \(3 bytes\) should be at least 4 bytes"):
        part.write("O", b"abcd")
    assert bytes(memory.content) == b"\0\0abc\0\0\0"


def test_a_forgotten_region_lives_as_long_as_its_parts() -> None:
    held = regions.Regions()
    held.add(system())
    part = held.part(border.Region("s", 0, 8))
    memory = weakref.ref(part.memory)
    held.remove(border.SystemRegion, "s")
    assert part.read() == bytes(8)
    gc.disable()
    try:
        del part
        assert memory() is None
    finally:
        gc.enable()
