"""Numbers of bytes in the words of people, for messages. Pure; nothing is ever worked out from these texts."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def text(size_bytes: int) -> str:
    """About so many bytes: three digits or so, such as ``9.5 MiB``."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    exponent = _exponent(size_bytes)
    value = size_bytes / 1024**exponent
    return f"{value:.{0 if value >= 100 else 1}f} {_UNITS[exponent]}"


def enough(size_bytes: int) -> str:
    """No fewer than so many bytes, in whole units and so as to be written in an answer: ``4148MiB`` for a little over 4.05 GiB."""
    exponent = max(0, _exponent(size_bytes) - (size_bytes % 1024 ** _exponent(size_bytes) != 0))
    return f"{-(-size_bytes // 1024**exponent)}{_UNITS[exponent]}" if exponent else f"{size_bytes} B"


def _exponent(size_bytes: int) -> int:
    return min(max(0, size_bytes.bit_length() - 1) // 10, len(_UNITS) - 1)
