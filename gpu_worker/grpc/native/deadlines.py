"""Ends calls at their deadlines: one timer for all, in slots of a few milliseconds.

A timer for each call would cost more than the call. Slots wait in a heap, from which those whose calls have all ended
are taken late: when their time comes, or when they are most of it. Must never end a call early, nor look at calls whose
time has not come.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from typing import Protocol

_SLOT_S = 0.005
_LEAST_GARBAGE = 64


class Call(Protocol):
    """What has a deadline."""

    def expire(self) -> None: ...


class Deadlines:
    """Of one event loop; `close` ends it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots: dict[int, dict[Call, None]] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf

    def add(self, call: Call, deadline_s: float) -> int:
        """From now on `call` may expire; the result takes it out again."""
        slot = int(deadline_s / _SLOT_S) + 1
        calls = self._slots.get(slot)
        if calls is None:
            calls = self._slots[slot] = {}
            heapq.heappush(self._order, slot)
            if slot < self._next:
                self._arm(slot)
        calls[call] = None
        return slot

    def remove(self, call: Call, slot: int) -> None:
        """Forgets a call that has ended."""
        calls = self._slots.get(slot)
        if calls is not None:
            calls.pop(call, None)
            if not calls:
                del self._slots[slot]
                if len(self._order) > 2 * len(self._slots) + _LEAST_GARBAGE:
                    self._order = sorted(self._slots)

    def close(self) -> None:
        """Nothing expires any more."""
        if self._timer:
            self._timer.cancel()
        self._slots.clear()
        self._order.clear()

    def _arm(self, slot: int) -> None:
        if self._timer:
            self._timer.cancel()
        self._next = slot
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, slot * _SLOT_S - self._clock()), self._expire)

    def _expire(self) -> None:
        self._timer, self._next = None, math.inf
        now = self._clock() / _SLOT_S
        while self._order and self._order[0] <= now:
            # The slot may have ended, or have been there twice: ended and begun again.
            for call in tuple(self._slots.pop(heapq.heappop(self._order), ())):
                call.expire()
        while self._order and self._order[0] not in self._slots:
            heapq.heappop(self._order)
        if self._order and self._order[0] < self._next:
            self._arm(self._order[0])
