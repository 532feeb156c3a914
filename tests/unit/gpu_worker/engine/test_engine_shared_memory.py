"""System shared memory: which keys are opened, and what truncation does."""

from __future__ import annotations

import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine import border
from gpu_worker.memory import cuda, system
from tests.support import shared_objects


def region(path: pathlib.Path, offset: int = 0, byte_size: int = 8) -> border.SystemRegion:
    return border.SystemRegion("r", shared_objects.key(path), offset, byte_size)


def refusal(described: border.SystemRegion) -> str:
    with pytest.raises(border.InferenceError) as caught:
        system.SystemMemory(described)
    assert caught.value.kind is border.ErrorKind.INVALID_ARGUMENT
    return caught.value.message


def test_bytes_are_moved_from_the_regions_offset_on() -> None:
    with shared_objects.made(16) as path:
        path.write_bytes(bytes(range(16)))
        memory = system.SystemMemory(region(path, 4))
        assert bytes(memory.read(2, 3)) == bytes([6, 7, 8])
        memory.write(2, memoryview(b"xyz"))
        assert path.read_bytes() == bytes(range(6)) + b"xyz" + bytes(range(9, 16))
        assert bytes(memory.read(8, 0)) == b""


def test_what_is_read_does_not_change_under_the_reader() -> None:
    with shared_objects.made(8) as path:
        copy = system.SystemMemory(region(path)).read(0, 8)
        path.write_bytes(b"x" * 8)
        assert bytes(copy) == bytes(8)


@pytest.mark.parametrize(("offset", "byte_size"), [(0, 17), (16, 1), (9, 8), (2**62, 1)])
def test_the_object_must_hold_the_region(offset: int, byte_size: int) -> None:
    with shared_objects.made(16) as path:
        assert "Invalid shared memory region 'r'" in refusal(region(path, offset, byte_size))
        assert shared_objects.key(path) not in shared_objects.open_in(os.getpid())


@pytest.mark.parametrize(("offset", "byte_size"), [(-1, 8), (0, 0), (0, -8), (2**63 - 1, 8), (2**64, 1)])
def test_sizes_that_cannot_be_are_refused(offset: int, byte_size: int) -> None:
    with shared_objects.made(16) as path:
        assert "invalid args" in refusal(region(path, offset, byte_size))


@pytest.mark.parametrize(
    "key", ["", "/", "/.", "/..", "..", "/../etc/passwd", "/a/b", "//a", "/a\0b", "/" + "x" * 256, "/\ud800"]
)
def test_keys_that_would_leave_the_directory_are_refused(key: str) -> None:
    assert refusal(border.SystemRegion("r", key, 0, 1)).startswith("Unable to open shared memory region")


def test_the_keys_of_python_models_are_reserved() -> None:
    described = border.SystemRegion("r", "/triton_python_backend_shm_region_1", 0, 1)
    assert "reserved" in refusal(described)


@given(st.text(max_size=20), st.integers(-(2**64), 2**64), st.integers(-(2**64), 2**64))
def test_no_key_and_no_size_does_worse_than_a_refusal(key: str, offset: int, byte_size: int) -> None:
    assert refusal(border.SystemRegion("r", f"/tms_test_nothing_{key}", offset, byte_size))


def test_links_and_what_is_no_object_are_refused(tmp_path: pathlib.Path) -> None:
    with shared_objects.made(8) as path:
        (tmp_path / "secret").write_bytes(bytes(8))
        path.unlink()
        path.symlink_to(tmp_path / "secret")
        assert "Unable to open shared memory region" in refusal(region(path))
        path.unlink()
        os.mkfifo(path)
        assert "not a shared memory object" in refusal(region(path))
        path.unlink()
        path.mkdir()
        assert "Unable to open shared memory region" in refusal(region(path))
        path.rmdir()


def test_a_truncated_object_fails_reads_and_writes_and_nothing_else() -> None:
    with shared_objects.made(2**20) as path:
        memory = system.SystemMemory(region(path, 0, 2**20))
        os.truncate(path, 10)
        with pytest.raises(border.InferenceError, match="has been truncated"):
            memory.read(0, 2**20)
        assert len(memory.read(0, 10)) == 10
        with pytest.raises(border.InferenceError, match="beyond the 10 bytes"):
            memory.write(0, bytes(4))
        assert path.stat().st_size == 10
        os.truncate(path, 2**20)
        memory.write(2**20 - 4, b"abcd")
        assert bytes(memory.read(2**20 - 4, 4)) == b"abcd"


def test_the_last_reference_closes_the_object() -> None:
    with shared_objects.made(8) as path:
        memory = system.SystemMemory(region(path))
        path.unlink()
        assert shared_objects.key(path) in shared_objects.open_in(os.getpid())
        assert bytes(memory.read(0, 8)) == bytes(8)
        del memory
        assert shared_objects.key(path) not in shared_objects.open_in(os.getpid())


def test_sparse_objects_beyond_all_memory_are_refused_not_fatal() -> None:
    with shared_objects.made(8) as path:
        memory = system.SystemMemory(region(path))
        with pytest.raises(border.InferenceError) as caught:
            memory.read(0, 2**60)
        assert caught.value.kind is border.ErrorKind.UNAVAILABLE


def test_cuda_memory_needs_a_gpu() -> None:
    if cuda.gpus():
        with pytest.raises(border.InferenceError, match="raw_handle must have 64 bytes"):
            cuda.CudaMemory(border.CudaRegion("c", 0, 8), b"")
    else:
        with pytest.raises(border.InferenceError, match="GPUs not supported") as caught:
            cuda.CudaMemory(border.CudaRegion("c", 0, 8), bytes(64))
        assert caught.value.kind is border.ErrorKind.UNSUPPORTED
