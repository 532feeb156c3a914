"""Datatypes, sizes and the wire form of tensors.

Decides how bytes on the wire become numpy arrays and back. Fixed-size elements are viewed in place, never copied; BF16
travels as raw uint16. Nothing here trusts a length: whatever does not fit raises InferenceError.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_worker.engine import border

Array = npt.NDArray[Any]

_MAX_BYTES = 2**63 - 1
_LENGTH = struct.Struct("<I")


@dataclasses.dataclass(frozen=True, slots=True)
class Datatype:
    """One V2 datatype: its name, its numpy form and the bytes of one element (0 where elements vary in size)."""

    name: str
    dtype: np.dtype[Any]
    item_bytes: int


def _fixed(name: str, code: str) -> Datatype:
    dtype = np.dtype(code)
    return Datatype(name, dtype, dtype.itemsize)


DATATYPES = {
    datatype.name: datatype
    for datatype in (
        _fixed("BOOL", "?"),
        _fixed("UINT8", "<u1"),
        _fixed("UINT16", "<u2"),
        _fixed("UINT32", "<u4"),
        _fixed("UINT64", "<u8"),
        _fixed("INT8", "<i1"),
        _fixed("INT16", "<i2"),
        _fixed("INT32", "<i4"),
        _fixed("INT64", "<i8"),
        _fixed("FP16", "<f2"),
        _fixed("FP32", "<f4"),
        _fixed("FP64", "<f8"),
        _fixed("BF16", "<u2"),
        Datatype("BYTES", np.dtype(object), 0),
    )
}
"""By V2 name."""


def element_count(shape: Sequence[int]) -> int:
    """Elements of a tensor of that shape.

    Raises ValueError where a dimension is negative, or where the dimensions (zeros counted as ones) multiply to more
    than can be addressed.
    """
    count = extent = 1
    for dim in shape:
        if dim < 0:
            raise ValueError(f"dimension {dim} is negative")
        count *= dim
        extent *= dim or 1
    if extent > _MAX_BYTES // 16:
        raise ValueError("the product of the dimensions is too large")
    return count


def size_bytes(data: border.Buffer) -> int:
    return data.nbytes if isinstance(data, memoryview) else len(data)


def view(data: border.Buffer, datatype: Datatype, shape: Sequence[int]) -> Array:
    """The array behind the wire bytes of a fixed-size datatype; copied only where the bytes are not aligned."""
    array = np.frombuffer(data, datatype.dtype) if size_bytes(data) else np.empty(0, datatype.dtype)
    array = array.reshape(shape)
    return array if array.flags.aligned else array.copy()


def to_wire(array: Array) -> border.Buffer:
    """The wire bytes of a contiguous array; fixed-size elements are shared with the array, BYTES are encoded."""
    if array.dtype == object:
        return encode_bytes(array)
    if array.size == 0:
        return b""
    return array.data.cast("B")


def encode_bytes(array: Array) -> bytes:
    """The wire form of an object array of `bytes` or `str` (as UTF-8)."""
    parts: list[bytes] = []
    for element in array.ravel():
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(raw)), raw)
    return b"".join(parts)


def decode_bytes(data: border.Buffer, shape: Sequence[int], name: str) -> Array:
    """The object array of `str` behind the wire form of input `name`.

    Raises InferenceError INVALID_ARGUMENT unless the data holds exactly the elements of the shape, each of it UTF-8.
    """
    expected = element_count(shape)
    array = np.empty(expected, dtype=object)
    try:
        array[:] = [element.decode() for element in split_bytes(data, expected, name)]
    except UnicodeDecodeError as error:
        raise border.InferenceError(
            border.ErrorKind.INVALID_ARGUMENT, f"a string element of inference input '{name}' is not UTF-8: {error}"
        ) from None
    return array.reshape(shape)


def split_bytes(data: border.Buffer, expected: int, name: str) -> list[bytes]:
    """The elements of the wire form; raises InferenceError INVALID_ARGUMENT unless there are `expected` whole ones."""
    raw = bytes(data)
    elements: list[bytes] = []
    offset = 0
    while offset < len(raw):
        if len(elements) == expected:
            raise _wrong_count(name, expected, "more")
        if len(raw) - offset < _LENGTH.size:
            raise _incomplete("length", name, _LENGTH.size, len(raw) - offset)
        (length,) = _LENGTH.unpack_from(raw, offset)
        offset += _LENGTH.size
        if length > len(raw) - offset:
            raise _incomplete("data", name, length, len(raw) - offset)
        elements.append(raw[offset : offset + length])
        offset += length
    if len(elements) != expected:
        raise _wrong_count(name, expected, str(len(elements)))
    return elements


def _wrong_count(name: str, expected: int, got: str) -> border.InferenceError:
    return border.InferenceError(
        border.ErrorKind.INVALID_ARGUMENT,
        f"expected {expected} string elements for inference input '{name}', got {got}",
    )


def _incomplete(what: str, name: str, expected_bytes: int, available_bytes: int) -> border.InferenceError:
    return border.InferenceError(
        border.ErrorKind.INVALID_ARGUMENT,
        f"incomplete string {what} for inference input '{name}', expecting {expected_bytes} bytes but only "
        f"{available_bytes} bytes available",
    )
