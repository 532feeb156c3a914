"""How much, how many and how long one HTTP connection may be."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a connection; a body may take `body_timeout_s` and a second for each `least_bytes_per_s` received."""

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

    @property
    def sweep_s(self) -> float:
        """How often deadlines are looked at: finely enough for the shortest."""
        times = (self.head_timeout_s, self.body_timeout_s, self.write_timeout_s, self.idle_timeout_s, self.linger_s)
        return max(0.01, min(1.0, min(times) / 2))
