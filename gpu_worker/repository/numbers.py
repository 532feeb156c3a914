"""Numbers that configurations write as text. Pure."""

from __future__ import annotations

from gpu_worker.engine import border


def whole(name: str, text: str) -> int:
    """The non-negative whole number in `text`; raises InferenceError INVALID_ARGUMENT naming the setting."""
    if not (text.isascii() and text.isdecimal()):
        raise border.InferenceError(
            border.ErrorKind.INVALID_ARGUMENT, f"{name} must be a whole number of 0 or more, not '{text}'"
        )
    return int(text)


def flag(name: str, text: str) -> bool:
    """The switch in `text`, 0 or 1; raises InferenceError INVALID_ARGUMENT naming the setting."""
    number = whole(name, text)
    if number > 1:
        raise border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, f"{name} must be 0 or 1, not '{text}'")
    return bool(number)
