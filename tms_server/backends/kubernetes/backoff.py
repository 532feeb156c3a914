"""Pauses between tries that fail: longer each time, and never the same for two who try at once."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random  # noqa: TID251 - jitter enters here


@dataclasses.dataclass(slots=True, kw_only=True)
class Backoff:
    """Doubles from `first_s` to `longest_s`; `reset` after a success."""

    first_s: float = 0.1
    longest_s: float = 10.0
    _failures: int = 0

    def pause(self) -> dt.timedelta:
        """Between half of what is due and all of it."""
        due_s = min(self.longest_s, self.first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return dt.timedelta(seconds=due_s * spread())

    def reset(self) -> None:
        self._failures = 0


def spread() -> float:
    """From a half to one: keeps many clients from asking at the same time."""
    return random.uniform(0.5, 1.0)  # noqa: S311 - no secret
