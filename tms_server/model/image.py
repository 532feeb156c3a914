"""Container images that leases and pools may ask for: a rule is an image's name that may end in ``*``."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageRule:
    """A rule as stored: who allowed what, and when."""

    pattern: str
    created_at: dt.datetime
    actor: str


def matches(pattern: str, image: str) -> bool:
    """Whether that rule allows that image; a ``*`` at the end stands for any rest."""
    return image.startswith(pattern.removesuffix("*")) if pattern.endswith("*") else image == pattern


def allowed(image: str, patterns: Iterable[str]) -> bool:
    """Whether any of the rules allows the image."""
    return any(matches(pattern, image) for pattern in patterns)
