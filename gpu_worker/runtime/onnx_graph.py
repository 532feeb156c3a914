"""Whether the work of an ONNX graph depends on the shapes of its inputs alone, read from its file without its weights.

Decides by the operators: those of the standard, without graphs of their own, do the same work for the same shapes. A loop
may go round as often as its data say, and what a custom operator does only its author knows. Must never read more of a
file than the descriptions of its nodes. Field numbers: onnx.proto of ONNX, ModelProto, GraphProto, NodeProto, AttributeProto.
"""

from __future__ import annotations

import mmap
import pathlib
from collections.abc import Iterator

_GRAPH, _NODE, _ATTRIBUTE, _DOMAIN = 7, 1, 5, 7
_SUBGRAPHS = {6, 11}
_STANDARD = {b"", b"ai.onnx", b"ai.onnx.ml"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


class _Malformed(ValueError):
    """These bytes are no protobuf message."""


def is_steady(model: pathlib.Path) -> bool:
    """Whether two runs on inputs of equal shapes do the same work; False where the file does not tell."""
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graphs = [span for number, span in _fields(data, 0, len(data)) if number == _GRAPH]
            return len(graphs) == 1 and all(
                _is_plain(data, *node) for number, node in _fields(data, *graphs[0]) if number == _NODE
            )
    except (OSError, ValueError):
        return False


def _is_plain(data: mmap.mmap, start: int, end: int) -> bool:
    for number, span in _fields(data, start, end):
        if number == _DOMAIN and data[slice(*span)] not in _STANDARD:
            return False
        if number == _ATTRIBUTE and any(number in _SUBGRAPHS for number, _ in _fields(data, *span)):
            return False
    return True


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Number and place of each field that has a length; see the protobuf encoding specification, "Message Structure"."""
    while start < end:
        tag, start = _varint(data, start)
        kind = tag & 7
        if kind == _BYTES:
            length, start = _varint(data, start)
            if start + length > end:
                raise _Malformed("a field is longer than its message")
            yield tag >> 3, (start, start + length)
            start += length
        elif kind == _VARINT:
            _, start = _varint(data, start)
        elif kind in {_FIXED64, _FIXED32}:
            start += 8 if kind == _FIXED64 else 4
        else:
            raise _Malformed(f"wire type {kind}")


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for at, byte in enumerate(data[start : start + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            return value, start + at + 1
    raise _Malformed("a number does not end")
