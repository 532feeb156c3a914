"""Quantiles of what was observed within the last minute, at a bounded relative error.

Observations are counted in buckets that grow by a constant factor, as in DDSketch (Masson, Rim, Lee: "DDSketch: a fast and
fully-mergeable quantile sketch with relative-error guarantees", VLDB 2019), one set of buckets for each fifth of the
window. Not safe for several threads at once. Times are nanoseconds of one monotonic clock.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable

from gpu_worker.engine import border

ERROR = 0.005
"""Relative error of a quantile, at most."""

_WINDOW_NS = 60_000_000_000
_SLOTS = 5
_SLOT_NS = _WINDOW_NS // _SLOTS
_GROWTH = (1 + ERROR) / (1 - ERROR)
_PER_LOG = 1 / math.log(_GROWTH)


class Sketch:
    """Whole numbers of 0 or more; count and sum are of all that was ever observed."""

    def __init__(self) -> None:
        self._count = 0
        self._total = 0
        self._slots: collections.deque[tuple[int, collections.Counter[int]]] = collections.deque()

    def add(self, values: Iterable[int], now_ns: int) -> None:
        slot = self._slot(now_ns)
        for value in values:
            self._count += 1
            self._total += value
            slot[math.ceil(math.log(value) * _PER_LOG) if value > 0 else -1] += 1

    def summary(self, quantiles: Iterable[float], now_ns: int) -> border.Summary:
        """A quantile is NaN where nothing was observed within the window."""
        self._forget(now_ns)
        merged: collections.Counter[int] = collections.Counter()
        for _, slot in self._slots:
            merged.update(slot)
        ordered = sorted(merged.items())
        return border.Summary(self._count, self._total, tuple((each, _quantile(ordered, each)) for each in quantiles))

    def _slot(self, now_ns: int) -> collections.Counter[int]:
        number = now_ns // _SLOT_NS
        if not self._slots or self._slots[-1][0] != number:
            self._slots.append((number, collections.Counter()))
            self._forget(now_ns)
        return self._slots[-1][1]

    def _forget(self, now_ns: int) -> None:
        while self._slots and self._slots[0][0] <= now_ns // _SLOT_NS - _SLOTS:
            self._slots.popleft()


def _quantile(ordered: list[tuple[int, int]], quantile: float) -> float:
    total = sum(count for _, count in ordered)
    rank = quantile * (total - 1)
    below = 0
    for bucket, count in ordered:
        below += count
        if below > rank:
            return 0.0 if bucket < 0 else 2 * _GROWTH**bucket / (_GROWTH + 1)
    return math.nan
