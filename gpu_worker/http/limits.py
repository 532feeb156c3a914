"""How much, how many and how long one HTTP connection may be."""

from __future__ import annotations

import dataclasses
import math
import random  # noqa: TID251 - spreads the ends of connections, protects and decides nothing

_SPREAD = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a connection; a body may take `body_timeout_s` and a second for each `least_bytes_per_s` received.

    A connection older than `age_s` ends with its next answer; 0 is never.
    """

    body_bytes: int = 64 * 2**20
    head_bytes: int = 64 * 2**10
    headers: int = 128
    pipelined: int = 64
    connections: int = 16384
    head_timeout_s: float = 20.0
    body_timeout_s: float = 60.0
    least_bytes_per_s: int = 16 * 2**10
    write_timeout_s: float = 60.0
    idle_timeout_s: float = 620.0
    linger_s: float = 5.0
    age_s: float = 0.0

    def one_age_s(self) -> float:
        """How old one connection may become: spread, so that clients that came together do not return together."""
        spread = random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311 - see the import
        return self.age_s * spread if self.age_s else math.inf

    @property
    def sweep_s(self) -> float:
        """How often deadlines are looked at: finely enough for the shortest."""
        times = (self.head_timeout_s, self.body_timeout_s, self.write_timeout_s, self.idle_timeout_s, self.linger_s)
        return max(0.01, min(1.0, min(times) / 2))
