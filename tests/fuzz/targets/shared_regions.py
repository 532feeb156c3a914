"""Registrations of shared memory and the parts of it that requests name: nothing outside what was registered."""

from __future__ import annotations

import os
import pathlib
import struct

from gpu_worker.engine import border, regions
from gpu_worker.http import decoding, sharing
from gpu_worker.memory import system

NAME = "shared-memory"
_OBJECT = f"tms-fuzz-{os.getpid()}"
_PATH = pathlib.Path("/dev/shm") / _OBJECT
_SIZE = 64
_CONTENT = bytes(range(_SIZE))
_NUMBERS = struct.Struct("<4q")


def fuzz(data: bytes) -> None:
    """Four numbers, then a key; `@` stands for the name of the one object that is there. JSON behind a brace."""
    if data.startswith(b"{"):
        _read_json(data.replace(b"@", _OBJECT.encode()))
        return
    numbers = _NUMBERS.unpack(data[: _NUMBERS.size].ljust(_NUMBERS.size, b"\0"))
    key = data[_NUMBERS.size :].decode(errors="surrogateescape").replace("@", _OBJECT)
    _PATH.write_bytes(_CONTENT)
    try:
        _register(border.SystemRegion("r", key, numbers[0], numbers[1]), numbers[2], numbers[3])
    finally:
        _PATH.unlink()


def _register(region: border.SystemRegion, offset: int, byte_size: int) -> None:
    try:
        memory = system.SystemMemory(region)
    except border.InferenceError as error:
        assert error.kind is border.ErrorKind.INVALID_ARGUMENT
        return
    assert region.key.removeprefix("/") == _OBJECT
    assert 0 <= region.offset <= region.offset + region.byte_size <= _SIZE
    known = regions.Regions()
    known.add(memory)
    try:
        part = known.part(border.Region("r", offset, byte_size))
    except border.InferenceError as error:
        assert error.kind is border.ErrorKind.INVALID_ARGUMENT
        return
    start = region.offset + offset
    assert region.offset <= start <= start + byte_size <= region.offset + region.byte_size
    assert bytes(part.read()) == _CONTENT[start : start + byte_size]
    part.write("Y", b"\xff" * byte_size)
    assert _PATH.read_bytes() == _CONTENT[:start] + b"\xff" * byte_size + _CONTENT[start + byte_size :]


def _read_json(data: bytes) -> None:
    for read in (sharing._system_region, sharing._cuda_region):
        try:
            read("r", decoding.parse(data))
        except border.InferenceError as error:
            assert error.kind is border.ErrorKind.INVALID_ARGUMENT
            error.message.encode(errors="surrogatepass")


def seeds() -> list[bytes]:
    numbers = [
        (0, 64, 0, 64),
        (8, 16, 4, 8),
        (0, 65, 0, 1),
        (-1, 1, 0, 1),
        (1, 2**63 - 1, 0, 0),
        (0, 64, 60, 5),
        (0, 0, 0, 0),
    ]
    keys = [b"/@", b"@", b"/../dev/shm/@", b"/a/@", b"", b"/", b"/.", b"/@\0", b"/\xff"]
    packed = [_NUMBERS.pack(*numbers[0]) + key for key in keys] + [_NUMBERS.pack(*each) + b"/@" for each in numbers]
    bodies = [
        b'{"key": "/@", "offset": 0, "byte_size": 64}',
        b'{"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 4}',
    ]
    return packed + bodies
