"""Amounts as Kubernetes writes them. The API server rewrites them, so they are compared as numbers."""

from __future__ import annotations

import fractions
import re

_FORM = re.compile(r"([+-]?[0-9.]+)([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?")
_BINARY = {f"{letter}i": 1 << (10 * step) for step, letter in enumerate("KMGTPE", start=1)}
_STEPS = {"n": -3, "u": -2, "m": -1, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_DECIMAL = {letter: fractions.Fraction(1000) ** step for letter, step in _STEPS.items()}


def of_milli(amount: int) -> str:
    """Thousandths."""
    return f"{amount}m" if amount % 1000 else str(amount // 1000)


def of_bytes(amount: int) -> str:
    """Bytes, in the largest binary unit that divides them."""
    for unit, size in reversed(_BINARY.items()):
        if amount and amount % size == 0:
            return f"{amount // size}{unit}"
    return str(amount)


def parse(text: str) -> fractions.Fraction | None:
    """The number; None for what is no amount."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    number, unit = found.groups()
    try:
        value = fractions.Fraction(number)
    except ValueError:
        return None
    if unit is None:
        return value
    scale = _BINARY.get(unit) or _DECIMAL.get(unit) or fractions.Fraction(f"1{unit}")
    return value * scale
