"""What is one for a model's process: its line to the worker, and what it was told about itself."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_worker.python_backend import line as lines


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """The model that this process runs an instance of; `directory` is its version's."""

    model: str
    version: int
    directory: str
    instance: str
    decoupled: bool


_HELD: dict[str, object] = {}


def enter(line: lines.Line, about: About) -> None:
    """Once, before the model's code is loaded."""
    _HELD.update(line=line, about=about)


def line() -> lines.Line:
    found: lines.Line = _HELD["line"]  # type: ignore[assignment]
    return found


def about() -> About:
    found = _HELD["about"]
    assert isinstance(found, About)
    return found
