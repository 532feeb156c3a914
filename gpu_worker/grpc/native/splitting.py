"""Tensors in and out of messages without copies. Pure.

A ModelInferRequest ends with its raw_input_contents (field 7), a ModelInferResponse with its raw_output_contents
(field 6), as every known serialiser writes fields in their order. So the tail is cut off a request before protobuf sees
it, and put behind an answer after it. What is not of that form is left to protobuf, whole: the result must always be
what protobuf alone would have made.
"""

from __future__ import annotations

from gpu_worker.engine import border
from gpu_worker.grpc import codec

_LEAST_BYTES = 2**12
_RAW_INPUT = 7
_RAW_INPUT_TAG = _RAW_INPUT << 3 | 2
_RAW_OUTPUT_TAG = b"\x32"
_DELIMITED = 2
_MOST_SHIFT = 28
JOINED_BYTES = 2**12

Raw = list[border.Buffer]


def split(message: border.Buffer) -> tuple[border.Buffer, Raw | None]:
    """`message` without its tensors, and these; None where nothing was cut off."""
    if len(message) < _LEAST_BYTES:
        return message, None
    view = memoryview(message)
    try:
        head = _head_bytes(view)
        raw = _raw(view, head) if head >= 0 else []
    except IndexError:
        return message, None
    return (view[:head], raw) if raw else (message, None)


def joined(answer: border.InferResponse) -> tuple[list[border.Buffer], int]:
    """An answer's message as parts that share the tensors' memory, and their length in bytes."""
    parts: list[border.Buffer] = [codec.describe(answer).SerializeToString()]
    for tensor in answer.outputs:
        parts.append(_RAW_OUTPUT_TAG + _varint(len(tensor.data)))
        parts.append(tensor.data)
    size = sum(map(len, parts))
    return ([b"".join(parts)] if size <= JOINED_BYTES else parts), size


def _head_bytes(view: memoryview) -> int:
    """How far the fields before the first raw_input_contents go; -1 where one is not as expected."""
    at, end = 0, len(view)
    while at < end:
        tag = view[at]
        if tag == _RAW_INPUT_TAG:
            return at
        # Fields of two-byte tags are unknown ones, field 0 is none, and all known ones are length-delimited.
        if tag & 0x87 != _DELIMITED or tag < 8:
            return -1
        at = _skip(view, at + 1, end)
    return -1


def _skip(view: memoryview, at: int, end: int) -> int:
    length, at = _length(view, at)
    if at + length > end:
        raise IndexError
    return at + length


def _raw(view: memoryview, at: int) -> Raw:
    """The raw_input_contents from `at` to the end; empty where something else comes between or after."""
    found: Raw = []
    end = len(view)
    while at < end:
        if view[at] != _RAW_INPUT_TAG:
            return []
        length, at = _length(view, at + 1)
        if at + length > end:
            return []
        found.append(view[at : at + length])
        at += length
    return found


def _length(view: memoryview, at: int) -> tuple[int, int]:
    """A varint of up to five bytes, and where it ends. IndexError for a longer one."""
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > _MOST_SHIFT:
            raise IndexError


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
