"""The settings of the trace extension: parsed, checked, inherited.

Pure. A model's settings are those it was given, and for the rest the global ones; those are what clients have set, and
for the rest what the server was started with. Must never take a setting in half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gpu_worker.engine import border

OFF, TIMESTAMPS, TENSORS = "OFF", "TIMESTAMPS", "TENSORS"
TRITON, OPENTELEMETRY = "triton", "opentelemetry"
# Older names for a level.
_ALIASES = {"MIN": TIMESTAMPS, "MAX": TIMESTAMPS}
_LEVELS = (TIMESTAMPS, TENSORS)
_LARGEST = 2**32 - 1
_FIXED = {
    "trace_file": "trace file location can not be updated through network protocol",
    "trace_mode": "trace mode can not be updated through network protocol",
}

Changes = Mapping[str, Sequence[str] | None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One of `rate` requests is traced, until `count` are (-1: for ever); a file holds `log_frequency` traces (0: all).

    In the mode `opentelemetry` traces are spans, of a process with that `resource`, and go to the collector at `url`.
    """

    mode: str = TRITON
    url: str = "http://localhost:4318/v1/traces"
    resource: tuple[tuple[str, str], ...] = ()
    file: str = ""
    levels: tuple[str, ...] = ()
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0

    @property
    def on(self) -> bool:
        return bool(self.levels and self.rate and self.count and self.destination)

    @property
    def destination(self) -> str:
        """Where traces go; empty for nowhere."""
        return self.file if self.mode == TRITON else self.url

    def told(self) -> dict[str, list[str]]:
        """As the trace extension names them."""
        return {
            "trace_file": [self.file],
            "trace_level": list(self.levels) or [OFF],
            "trace_rate": [str(self.rate)],
            "trace_count": [str(self.count)],
            "log_frequency": [str(self.log_frequency)],
            "trace_mode": [self.mode],
        }


Given = Mapping[str, Any]
"""What was set, by the field's name; what is absent is inherited."""


def changed(given: Given, changes: Changes) -> dict[str, Any]:
    """`given` with what a client sets, or clears with None. Raises InferenceError for what is not to be had."""
    found = dict(given)
    for name, values in changes.items():
        field, value = _parsed(name, values)
        found.pop(field, None)
        if value is not None:
            found[field] = value
    return found


def levels(names: Sequence[str]) -> tuple[str, ...]:
    """The levels of these names, in one order. Raises InferenceError."""
    known = [_ALIASES.get(name, name) for name in names]
    for name in known:
        if name not in (OFF, *_LEVELS):
            raise refused(f"Unable to parse 'trace_level', got: {name}: known are {', '.join((OFF, *_LEVELS))}")
    if OFF in known and len(set(known)) > 1:
        raise refused(f"Expect only one trace level '{OFF}' is specified, got: {', '.join(names)}")
    return tuple(level for level in _LEVELS if level in known)


def number(name: str, text: str, least: int) -> int:
    """The number in `text`, at least `least`. Raises InferenceError."""
    digits = text.removeprefix("-") if least < 0 else text
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 10:
        raise refused(f"Unable to parse '{name}', got: {text[:40]}")
    value = int(text)
    if not least <= value <= _LARGEST:
        raise refused(f"Unable to parse '{name}', value is out of range [ {least}, {_LARGEST} ], got: {value}")
    return value


def refused(message: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, message)


def _parsed(name: str, values: Sequence[str] | None) -> tuple[str, Any]:
    """The field that a setting is for, and its value; None to clear it."""
    if name in _FIXED:
        raise border.InferenceError(border.ErrorKind.UNSUPPORTED, _FIXED[name])
    if name == "trace_level":
        return "levels", None if values is None else levels(values)
    if name not in {"trace_rate", "trace_count", "log_frequency"}:
        raise refused(f"unknown trace setting '{name}': known are {', '.join(Settings().told())}")
    field = name.removeprefix("trace_")
    if values is None:
        return field, None
    if len(values) != 1:
        raise refused(f"Unable to parse '{name}', expect only 1 value, got: {len(values)}")
    return field, number(name, values[0], -1 if name == "trace_count" else 0)
