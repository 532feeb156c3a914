"""How far a fetch is, how fast it goes and how long it will take."""

from __future__ import annotations

import collections
import dataclasses
import threading

_WINDOW_S = 15.0


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """Bytes here and in all; the rate is that of the last seconds, 0 while unknown."""

    fetched_bytes: int
    total_bytes: int
    bytes_per_s: int


class Progress:
    """Of one model; written by threads, read by the event loop."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._here_bytes = 0
        self._moved_bytes = 0
        self._lock = threading.Lock()
        self._looks: collections.deque[tuple[float, int]] = collections.deque()

    @property
    def fetched_bytes(self) -> int:
        return max(min(self._here_bytes, self.total_bytes), 0)

    def found(self, more_bytes: int) -> None:
        """Bytes that were here already, or do not count after all."""
        with self._lock:
            self._here_bytes += more_bytes

    def add(self, more_bytes: int) -> None:
        """Bytes that came."""
        with self._lock:
            self._here_bytes += more_bytes
            self._moved_bytes += more_bytes

    def look(self, now_s: float) -> Seen:
        """As of a monotonic time. The rate is between the looks of the last seconds."""
        with self._lock:
            self._looks.append((now_s, self._moved_bytes))
            while len(self._looks) > 1 and self._looks[1][0] <= now_s - _WINDOW_S:
                self._looks.popleft()
            (began_s, before), (ended_s, after) = self._looks[0], self._looks[-1]
        rate = int((after - before) / (ended_s - began_s)) if ended_s > began_s else 0
        return Seen(self.fetched_bytes, self.total_bytes, rate)
