"""What a worker and the process of a Python model tell each other: kinds of messages, and heads in JSON.

Decides the form of heads; tensors' bytes travel beside them, see `gpu_worker.ipc.link`. Both sides import this, so it
must import nothing that a model might bring in another version.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview

FINAL = 1
"""Flag of a response: no other follows."""

_LENGTH = struct.Struct("<I")


class Kind(enum.IntEnum):
    """To the model: SETUP to STOP, and ANSWER to what it asked. From it: the others."""

    SETUP = 1
    EXECUTE = 2
    CANCEL = 3
    STOP = 4
    ANSWER = 5
    READY = 6
    EXECUTED = 7
    RESPOND = 8
    ASK = 9
    UNASK = 10
    LOG = 11


def pack(head: Any) -> bytes:
    """TypeError for what JSON cannot say."""
    return orjson.dumps(head)


def unpack(head: bytes) -> Any:
    """ValueError for what is no JSON."""
    return orjson.loads(head)


def encode_strings(elements: Iterable[Any]) -> bytes:
    """The wire form of BYTES elements: `bytes`, or anything as the UTF-8 of its text."""
    parts: list[bytes] = []
    for element in elements:
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(raw)), raw)
    return b"".join(parts)


def decode_strings(data: Buffer, shape: Sequence[int]) -> Array:
    """The object array of `bytes` behind the wire form. Raises ValueError where the two do not agree."""
    raw = bytes(data)
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        (length,) = _LENGTH.unpack_from(raw, at) if len(raw) - at >= _LENGTH.size else (len(raw),)
        at += _LENGTH.size + length
        if at > len(raw):
            raise ValueError("a string element is cut short")
        found.append(raw[at - length : at])
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array.reshape(shape)
