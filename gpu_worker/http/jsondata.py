"""JSON numbers and strings to the wire form of a tensor, and back.

Pure. What JSON cannot carry exactly (FP16, BF16, not-a-number, bytes that are not UTF-8) is refused, never rounded.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import struct
from typing import Any

import numpy as np
import orjson

from gpu_worker.engine import border
from gpu_worker.wire import datatypes

# Possessive, and content with a string that never ends: linear in the text, whatever it is.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}

# Which types of Python's JSON a datatype takes.
_TYPES: dict[str, set[type]] = {
    "BOOL": {bool, int},
    "FP32": {int, float},
    "FP64": {int, float},
    "BYTES": {str},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """What the data must be; `count` is the product of `shape`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    count: int


def deeper_than(text: bytes, depth: int) -> bool:
    """Whether brackets outside strings nest deeper than `depth`."""
    if text.count(b"[") + text.count(b"{") <= depth:
        return False
    brackets = np.frombuffer(_STRING.sub(b"", text).translate(None, _NOT_BRACKETS), np.uint8)
    # In ASCII the low bits tell "[" and "{" from "]" and "}".
    steps = np.where((brackets & 0x07) == 0x03, 1, -1)
    return bool(steps.size) and int(np.cumsum(steps).max()) > depth


def to_wire(spec: Spec, data: Any) -> border.Buffer:
    """The wire form of `data`, nested to the shape or flat. Raises InferenceError naming the input."""
    if spec.datatype in ("FP16", "BF16"):
        raise _bad(spec, f"{spec.datatype} data cannot be sent as JSON numbers; use binary data")
    flat = _flatten(spec, data)
    if len(flat) != spec.count:
        raise _bad(spec, f"Shape does not match true shape of 'data' field: expected {spec.count}, got {len(flat)}")
    found = set(map(type, flat))
    allowed = _TYPES.get(spec.datatype, {int})
    if not found <= allowed:
        raise _bad(spec, f"expected {_words(allowed)} for {spec.datatype}, found {_words(found - allowed)}")
    if spec.datatype == "BYTES":
        return datatypes.pack_bytes([element.encode() for element in flat])
    return _numbers(spec, flat)


def from_wire(tensor: border.Tensor) -> Any:
    """A flat value that orjson (with numpy) can print. Raises InferenceError when JSON cannot carry the output."""
    if tensor.datatype == "BYTES":
        return _strings(tensor)
    if tensor.datatype not in datatypes.NUMPY:
        raise _unprintable(tensor, f"{tensor.datatype} elements")
    array = np.frombuffer(tensor.data, datatypes.NUMPY[tensor.datatype])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _unprintable(tensor, "not-a-number or infinite elements")
    return array


def dump(value: Any) -> bytes:
    """JSON of `value`, which may hold what `from_wire` gave."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _flatten(spec: Spec, data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise _bad(spec, "must be an array")
    level, depth = data, 0
    while level and list in (types := set(map(type, level))):
        dims = spec.shape[depth : depth + 2]
        if len(types) > 1 or len(dims) < 2 or {*map(len, level)} != {dims[1]} or (not depth and len(data) != dims[0]):
            raise _bad(spec, f"Shape does not match true shape of 'data' field: nesting does not fit {[*spec.shape]}")
        level = list(itertools.chain.from_iterable(level))
        depth += 1
    if depth and depth + 1 != len(spec.shape) and level:
        raise _bad(spec, f"Shape does not match true shape of 'data' field: nested {depth + 1} of {len(spec.shape)}")
    return level


def _numbers(spec: Spec, flat: list[Any]) -> bytes:
    if spec.datatype == "BOOL":
        if not set(flat) <= {0, 1}:
            raise _bad(spec, "BOOL takes true, false, 0 and 1 only")
        return bytes(flat)
    try:
        return struct.pack(f"<{len(flat)}{_CODES[spec.datatype]}", *flat)
    except (struct.error, OverflowError) as error:
        raise _bad(spec, f"a value is out of the range of {spec.datatype}") from error


def _strings(tensor: border.Tensor) -> list[str]:
    try:
        return [element.decode() for element in datatypes.unpack_bytes(tensor.name, tensor.data)]
    except UnicodeDecodeError as error:
        raise _unprintable(tensor, "elements that are not UTF-8") from error


def _words(types: set[type]) -> str:
    return " or ".join(
        sorted(
            {bool: "booleans", int: "integers", float: "numbers", str: "strings"}.get(kind, "other") for kind in types
        )
    )


def _bad(spec: Spec, message: str) -> border.InferenceError:
    return datatypes.refused(f"Unable to parse 'data' of input '{spec.name}': {message}")


def _unprintable(tensor: border.Tensor, what: str) -> border.InferenceError:
    return datatypes.refused(
        f"output '{tensor.name}' holds {what}, which JSON cannot carry; request it with binary_data true"
    )
