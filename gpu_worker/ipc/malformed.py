"""What is raised for bytes that no peer of the same version writes."""

from __future__ import annotations


class MalformedError(Exception):
    """The bytes make no sense; whoever wrote them is not to be listened to any more."""
