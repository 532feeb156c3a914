"""The V2 datatypes and their wire form: little-endian, row-major, BYTES elements each after a 4-byte length.

Must never guess: what does not fit a datatype exactly is refused with words that name the tensor.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence

from gpu_worker.engine import border

# Bytes of one element; 0 for those that vary.
SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}

# Datatypes whose elements are numbers in JSON and in typed contents, as numpy names their wire form.
NUMPY = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP32": "<f4",
    "FP64": "<f8",
}

_LENGTH = struct.Struct("<I")
_MAX_BYTES = 2**63 - 1
# What numpy can hold. The product of very many dimensions would take the event loop's time.
_MAX_RANK = 64


def element_count(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Product of `shape`, 1 for a scalar; InferenceError for an unknown datatype or a size beyond 63 bits."""
    if datatype not in SIZES:
        raise refused(f"inference input '{name}' has unknown data-type '{datatype}'")
    if len(shape) > _MAX_RANK:
        raise refused(f"shape of '{name}' has {len(shape)} dimensions, at most {_MAX_RANK} are possible")
    if min(shape, default=0) < 0:
        raise refused(f"shape of '{name}' must hold non-negative integers, got {list(shape)}")
    count = math.prod(shape)
    if count * max(SIZES[datatype], _LENGTH.size) > _MAX_BYTES:
        raise refused(f"shape {list(shape)} of '{name}' holds more bytes than can be counted")
    return count


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """The wire form of BYTES elements."""
    lengths = map(_LENGTH.pack, map(len, elements))
    return b"".join(itertools.chain.from_iterable(zip(lengths, elements, strict=True)))


def unpack_bytes(name: str, data: border.Buffer) -> list[bytes]:
    """The elements of a BYTES tensor; InferenceError names the tensor where a length or a body is cut short."""
    elements = []
    view, offset, end = memoryview(data), 0, len(data)
    while offset < end:
        if end - offset < _LENGTH.size:
            raise refused(f"incomplete string length for '{name}': {end - offset} bytes left of 4")
        start = offset + _LENGTH.size
        offset = start + _LENGTH.unpack_from(view, offset)[0]
        if offset > end:
            raise refused(f"incomplete string data for '{name}': expected {offset - start} bytes, got {end - start}")
        elements.append(bytes(view[start:offset]))
    return elements


def refused(message: str) -> border.InferenceError:
    """An invalid argument, told in `message`."""
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)
