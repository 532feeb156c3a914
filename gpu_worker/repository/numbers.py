"""Numbers that configurations write as text. Pure."""

from __future__ import annotations

from gpu_worker.engine import border

_SWITCHES = {"0": False, "false": False, "1": True, "true": True}
_MAX_DIGITS = 20


def whole(name: str, text: str) -> int:
    """The non-negative whole number in `text`; raises InferenceError INVALID_ARGUMENT naming the setting."""
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise border.InferenceError(
            border.ErrorKind.INVALID_ARGUMENT, f"{name} must be a whole number of 0 or more, not '{text}'"
        )
    return int(text)


def flag(name: str, text: str) -> bool:
    """The switch in `text`, 0 or 1, true or false; raises InferenceError INVALID_ARGUMENT naming the setting."""
    found = _SWITCHES.get(text.lower())
    if found is None:
        raise border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, f"{name} must be 0 or 1, not '{text}'")
    return found
