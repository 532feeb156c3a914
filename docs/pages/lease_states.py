"""The page of a lease's states, from the one transition table."""

from __future__ import annotations

from tms_server.leases import lifecycle


def text() -> str:
    """The picture and the table of all moves."""
    opening = "Generated from `tms_server/leases/lifecycle.py`. A move that is not here is refused."
    return f"# The states of a lease\n\n{opening}\n\n```mermaid\n{lifecycle.mermaid().strip()}\n```\n\n{lifecycle.markdown().strip()}\n"
