"""What the pages share."""

from __future__ import annotations


def cell(text: str) -> str:
    """Text that fits one cell of a markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
