"""Plain values and the border's own as bytes, and back.

Decides the form of all but tensors' data: one byte for the kind, then what it needs. Dataclasses and enums of the border
are known by their place among its names, so that a new one needs no word here; both sides run the same code. Bytes that
were not written so raise MalformedError; no input takes more than its own length in memory or nests without bound.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf import message as protobuf

from gpu_worker.engine import border
from gpu_worker.ipc.malformed import MalformedError
from protos.inference.v2 import model_config_pb2

_DEEPEST = 32
_COUNT = struct.Struct("<I")
_SMALL = struct.Struct("<q")
_REAL = struct.Struct("<d")
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1

_NAMED = [value for _, value in sorted(vars(border).items()) if isinstance(value, type)]
_RECORDS = [each for each in _NAMED if dataclasses.is_dataclass(each) and each is not border.InferRequest]
_ENUMS = [each for each in _NAMED if issubclass(each, enum.Enum) and each.__module__ == border.__name__]
_MESSAGES: list[type[protobuf.Message]] = [model_config_pb2.ModelConfig]
_PLACES = {each: place for place, each in enumerate(_RECORDS)}
_ENUM_PLACES = {each: place for place, each in enumerate(_ENUMS)}
_FIELDS = [tuple(field.name for field in dataclasses.fields(each)) for each in _RECORDS]


def encode(value: Any) -> bytes:
    """TypeError for what is no plain value."""
    parts: list[bytes] = []
    _put(value, parts)
    return b"".join(parts)


def decode(data: bytes | memoryview) -> Any:
    """The value; sequences come back as the tuples and lists they were, mappings as dicts, buffers as bytes."""
    reader = _Reader(data)
    try:
        value = reader.take(0)
    except (struct.error, IndexError, KeyError, ValueError, TypeError, protobuf.DecodeError) as error:
        raise MalformedError(f"no value: {error}") from None
    if reader.at != len(data):
        raise MalformedError(f"{len(data) - reader.at} bytes follow the value")
    return value


def _put(value: Any, parts: list[bytes]) -> None:
    put = _PUT.get(type(value))
    if put is not None:
        put(value, parts)
    elif type(value) in _PLACES:
        _put_record(value, parts)
    elif isinstance(value, enum.Enum) and type(value) in _ENUM_PLACES:
        parts.append(b"e" + _COUNT.pack(_ENUM_PLACES[type(value)]))
        _put(value.value, parts)
    else:
        _put_other(value, parts)


def _put_other(value: Any, parts: list[bytes]) -> None:
    """What only behaves like a plain value: a kind of mapping, a number of a library."""
    if type(value) in _MESSAGES:
        parts.append(b"m" + _COUNT.pack(_MESSAGES.index(type(value))))
        _put(value.SerializeToString(deterministic=True), parts)
    elif isinstance(value, Mapping):
        _put(dict(value), parts)
    elif isinstance(value, bool | int | float | str):
        base = next(base for base in (int, float, str) if isinstance(value, base))
        _put(base(value), parts)
    elif isinstance(value, Sequence):
        _put(list(value), parts)
    else:
        raise TypeError(f"a {type(value).__name__} cannot cross to another process")


def _put_int(value: int, parts: list[bytes]) -> None:
    if _SMALLEST <= value <= _LARGEST:
        parts.append(b"i" + _SMALL.pack(value))
    else:
        digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        parts.append(b"I" + _COUNT.pack(len(digits)) + digits)


def _put_text(value: str, parts: list[bytes]) -> None:
    raw = value.encode("utf-8", "surrogatepass")
    parts.append(b"s" + _COUNT.pack(len(raw)) + raw)


def _put_bytes(value: Any, parts: list[bytes]) -> None:
    raw = bytes(value)
    parts.append(b"b" + _COUNT.pack(len(raw)))
    parts.append(raw)


def _put_sequence(kind: bytes) -> Callable[[Any, list[bytes]], None]:
    def put(value: Any, parts: list[bytes]) -> None:
        parts.append(kind + _COUNT.pack(len(value)))
        for element in value:
            _put(element, parts)

    return put


def _put_mapping(value: dict[Any, Any], parts: list[bytes]) -> None:
    parts.append(b"d" + _COUNT.pack(len(value)))
    for key, element in value.items():
        _put(key, parts)
        _put(element, parts)


def _put_record(value: Any, parts: list[bytes]) -> None:
    place = _PLACES[type(value)]
    parts.append(b"o" + _COUNT.pack(place))
    for name in _FIELDS[place]:
        _put(getattr(value, name), parts)


_PUT: dict[type, Callable[[Any, list[bytes]], None]] = {
    type(None): lambda _value, parts: parts.append(b"N"),
    bool: lambda value, parts: parts.append(b"T" if value else b"F"),
    int: _put_int,
    float: lambda value, parts: parts.append(b"f" + _REAL.pack(value)),
    str: _put_text,
    bytes: _put_bytes,
    bytearray: _put_bytes,
    memoryview: _put_bytes,
    tuple: _put_sequence(b"t"),
    list: _put_sequence(b"l"),
    dict: _put_mapping,
}


class _Reader:
    """Takes one value after the other; `at` is where the next begins."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self.at = 0

    def take(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise MalformedError("values nest too deeply")
        kind = self._data[self.at]
        self.at += 1
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind == _INT:
            return self._fixed(_SMALL)
        if kind == _FLOAT:
            return self._fixed(_REAL)
        count = self._fixed(_COUNT)
        return self._counted(kind, count, depth) if kind in _RAW else self._nested(kind, count, depth + 1)

    def _fixed(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self._data, self.at)
        self.at += form.size
        return value

    def _counted(self, kind: int, count: int, _depth: int) -> Any:
        raw = bytes(self._data[self.at : self.at + count])
        if len(raw) != count:
            raise MalformedError("a value is cut short")
        self.at += count
        return _RAW[kind](raw)

    def _nested(self, kind: int, count: int, depth: int) -> Any:
        if kind == _TUPLE:
            return tuple([self.take(depth) for _ in range(count)])
        if kind == _LIST:
            return [self.take(depth) for _ in range(count)]
        if kind == _DICT:
            return {self.take(depth): self.take(depth) for _ in range(count)}
        if kind == _RECORD:
            return _RECORDS[count](**{name: self.take(depth) for name in _FIELDS[count]})
        if kind == _ENUM:
            return _ENUMS[count](self.take(depth))
        if kind == _MESSAGE:
            return _MESSAGES[count].FromString(self.take(depth))
        raise MalformedError(f"unknown kind {kind}")


_CONSTANTS = {ord("N"): None, ord("T"): True, ord("F"): False}
_RAW: dict[int, Callable[[bytes], Any]] = {
    ord("s"): lambda raw: raw.decode("utf-8", "surrogatepass"),
    ord("b"): lambda raw: raw,
    ord("I"): lambda raw: int.from_bytes(raw, "little", signed=True),
}
_INT, _FLOAT = b"if"
_TUPLE, _LIST, _DICT, _RECORD, _ENUM, _MESSAGE = b"tldoem"
