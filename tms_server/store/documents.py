"""Nested values as JSON documents: what a stored document looks like, and which version this server writes and reads.

A document is ``{"v": VERSION, "value": ...}``. Dataclasses are objects by field name, members of a union are wrapped in
an object with their class's name, times and spans are microseconds. A field that is absent takes its default, so a new
field with a default needs no new version; whatever else changes the shape raises VERSION and teaches `load` the old one.
It must never drop what it does not know: an unknown version or field is an error.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from tms_server.model import errors

VERSION = 1
T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """Both ways between a value and its JSON form."""

    dump: Callable[[T], Any]
    load: Callable[[Any], T]


def dump(type_: Any, value: object) -> dict[str, Any]:
    """The document of a value of that type."""
    return {"v": VERSION, "value": codec(type_).dump(value)}


def load(type_: Any, document: Mapping[str, Any]) -> Any:
    """The value of a document; FailedPrecondition when another version of the server wrote it."""
    version = document.get("v")
    if version != VERSION:
        raise errors.FailedPrecondition(
            f"the database holds a document of version {version!r}, this server reads version {VERSION}: "
            "run the server that wrote it, or a newer one"
        )
    return codec(type_).load(document["value"])


def to_us(time: dt.datetime) -> int:
    """Microseconds since 1970 of an aware time."""
    return (time - _EPOCH) // _MICROSECOND


def from_us(time_us: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=time_us)


def span_to_us(span: dt.timedelta) -> int:
    return span // _MICROSECOND


def span_from_us(span_us: int) -> dt.timedelta:
    return dt.timedelta(microseconds=span_us)


def member(type_: type[E], text: str) -> E:
    """The member of an enumeration by its stored text."""
    try:
        return type_(text)
    except ValueError:
        raise _unknown(text, type_.__name__) from None


@functools.cache
def codec(type_: Any) -> Codec[Any]:
    """The codec of a type hint, built once."""
    if hasattr(type_, "__supertype__"):
        return codec(type_.__supertype__)
    origin = typing.get_origin(type_)
    if origin in (types.UnionType, typing.Union):
        return _union(typing.get_args(type_))
    if origin is tuple:
        return _sequence(typing.get_args(type_)[0])
    if origin is Mapping:
        return Codec(dict, types.MappingProxyType)
    return _plain(type_)


def _plain(type_: Any) -> Codec[Any]:
    if dataclasses.is_dataclass(type_):
        return _dataclass(typing.cast("type[Any]", type_))
    if type_ is dt.datetime:
        return Codec(to_us, from_us)
    if type_ is dt.timedelta:
        return Codec(span_to_us, span_from_us)
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        return Codec(lambda value: value.value, lambda text: member(type_, text))
    if type_ in (str, int, bool):
        return Codec(_same, _same)
    raise TypeError(f"no document form for {type_!r}")


def _same(value: Any) -> Any:
    return value


def _sequence(item_type: Any) -> Codec[Any]:
    item = codec(item_type)
    if item.dump is _same:
        return Codec(list, tuple)
    return Codec(
        lambda values: [item.dump(value) for value in values],
        lambda values: tuple(item.load(value) for value in values),
    )


def _union(members: tuple[Any, ...]) -> Codec[Any]:
    """``X | None`` is X or null; a union of dataclasses is ``{"ClassName": ...}``."""
    some = [member for member in members if member is not types.NoneType]
    if len(some) == 1:
        only = codec(some[0])
        return Codec(
            lambda value: None if value is None else only.dump(value),
            lambda data: None if data is None else only.load(data),
        )
    codecs = {member.__name__: codec(member) for member in some}

    def dump_member(value: Any) -> dict[str, Any]:
        name = type(value).__name__
        return {name: codecs[name].dump(value)}

    def load_member(data: Mapping[str, Any]) -> Any:
        ((name, body),) = data.items()
        if name not in codecs:
            raise _unknown(name, "a value of")
        return codecs[name].load(body)

    return Codec(dump_member, load_member)


def _dataclass(type_: type[Any]) -> Codec[Any]:
    hints = typing.get_type_hints(type_)
    fields = {field.name: codec(hints[field.name]) for field in dataclasses.fields(type_)}

    def dump_fields(value: Any) -> dict[str, Any]:
        return {name: field.dump(getattr(value, name)) for name, field in fields.items()}

    def load_fields(data: Mapping[str, Any]) -> Any:
        if unknown := data.keys() - fields.keys():
            raise _unknown(min(unknown), type_.__name__)
        return type_(**{name: fields[name].load(body) for name, body in data.items()})

    return Codec(dump_fields, load_fields)


def _unknown(name: str, where: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        f"the database holds {where} {name!r}, which this server does not know: run the server that wrote it, or a newer one"
    )
