"""Whether the work of an ONNX graph depends on the shapes of its inputs alone, read from its file without its weights.

Decides by the operators: those of the standard, without graphs of their own, do the same work for the same shapes, as long
as no shape comes of data. A loop may go round as often as its data say, and what a custom operator does only its author
knows. Must never read more of a file than the descriptions of its nodes. Field numbers: onnx.proto of ONNX, ModelProto,
GraphProto, ValueInfoProto, NodeProto, AttributeProto.
"""

from __future__ import annotations

import mmap
import pathlib
from collections.abc import Iterator

_Span = tuple[int, int]

_GRAPH, _FUNCTION = 7, 25
_NODE, _INPUT = 1, 11
_NAME = 1
_TAKES, _MAKES, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7
_SUBGRAPHS = {6, 11}
_STANDARD = {b"", b"ai.onnx", b"ai.onnx.ml"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10

_FIRST = b"""NonZero Unique NonMaxSuppression Range ConstantOfShape HannWindow HammingWindow BlackmanWindow MelWeightMatrix
ImageDecoder StringSplit"""
_SECOND = b"""Reshape Squeeze Unsqueeze Expand Tile Slice Pad CenterCropPad Split SplitToSequence SequenceAt SequenceErase
Resize Upsample TopK OneHot Compress ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum ReduceSumSquare RoiAlign MaxRoiPool Col2Im AffineGrid DFT STFT"""
_SHAPED_BY = {
    **dict.fromkeys(_FIRST.split(), 0),
    **dict.fromkeys(_SECOND.split(), 1),
    **dict.fromkeys((b"MaxUnpool", b"SequenceInsert"), 2),
    **dict.fromkeys((b"RNN", b"GRU", b"LSTM"), 4),
    b"Attention": 6,
}
"""Operators whose work, or the shapes of whose outputs, the data of some inputs decide: of those from this one on."""

_ABOUT_SHAPES = {b"Shape", b"Size", b"SequenceLength"}
"""Whatever data these are given, they tell its shape."""

_CHANCE = {b"RandomNormal", b"RandomUniform", b"RandomNormalLike", b"RandomUniformLike", b"Bernoulli", b"Multinomial"}


class _Malformed(ValueError):
    """These bytes are no protobuf message."""


def is_steady(model: pathlib.Path) -> bool:
    """Whether two runs on inputs of equal shapes do the same work; False where the file does not tell."""
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            parts = list(_fields(data, 0, len(data)))
            graphs = [span for number, span in parts if number == _GRAPH]
            # The model's own functions may go by any name.
            own = any(number == _FUNCTION for number, _ in parts)
            return len(graphs) == 1 and not own and _is_steady(data, list(_fields(data, *graphs[0])))
    except (OSError, ValueError):
        return False


def _is_steady(data: mmap.mmap, graph: list[tuple[int, _Span]]) -> bool:
    """Follows what depends on data through the nodes, which are in topological order, as ONNX demands."""
    given = {_text(data, span, _NAME) for number, span in graph if number == _INPUT}
    return all(_is_plain(data, *node) and _keeps_shapes(data, node, given) for number, node in graph if number == _NODE)


def _keeps_shapes(data: mmap.mmap, node: _Span, given: set[bytes]) -> bool:
    """Whether no shape depends on what is `given` with the data, to which the node's outputs are added if they are of it."""
    fields = [(number, data[slice(*span)]) for number, span in _fields(data, *node) if number != _ATTRIBUTE]
    operator = next((value for number, value in fields if number == _OPERATOR), b"")
    takes = [value for number, value in fields if number == _TAKES]
    deciding = takes[_SHAPED_BY.get(operator, len(takes)) :]
    if operator in _CHANCE or (operator not in _ABOUT_SHAPES and not given.isdisjoint(takes)):
        given.update(value for number, value in fields if number == _MAKES and value)
    return given.isdisjoint(deciding)


def _text(data: mmap.mmap, message: _Span, wanted: int) -> bytes:
    return next((data[slice(*span)] for number, span in _fields(data, *message) if number == wanted), b"")


def _is_plain(data: mmap.mmap, start: int, end: int) -> bool:
    for number, span in _fields(data, start, end):
        if number == _DOMAIN and data[slice(*span)] not in _STANDARD:
            return False
        if number == _ATTRIBUTE and any(number in _SUBGRAPHS for number, _ in _fields(data, *span)):
            return False
    return True


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, _Span]]:
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
