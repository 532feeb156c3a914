"""Protobuf messages as JSON, as Triton writes them. Pure."""

from __future__ import annotations

from typing import Any

from google.protobuf import message


def shown(value: message.Message) -> dict[str, Any]:
    """A message as JSON with its own field names, enum names, defaults printed, and 64-bit integers as numbers."""
    return {
        field.name: _field(value, field)
        for field in value.DESCRIPTOR.fields
        if not field.has_presence or value.HasField(field.name)
    }


def _field(value: message.Message, field: Any) -> Any:
    content = getattr(value, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        kind = entry.fields_by_name["value"]
        return {str(key): _value(content[key], kind) for key in sorted(content)}
    if field.is_repeated:
        return [_value(item, field) for item in content]
    return _value(content, field)


def _value(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return shown(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return value
