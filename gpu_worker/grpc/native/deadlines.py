"""Ends calls at their deadlines: one timer for all, in slots of a few milliseconds.

A timer for each call would cost more than the call. Must never end a call early.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

_SLOT_S = 0.005


class Call(Protocol):
    """What has a deadline."""

    def expire(self) -> None: ...


class Deadlines:
    """Of one event loop; `close` ends it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots: dict[int, dict[Call, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf

    def add(self, call: Call, deadline_s: float) -> int:
        """From now on `call` may expire; the result takes it out again."""
        slot = int(deadline_s / _SLOT_S) + 1
        calls = self._slots.get(slot)
        if calls is None:
            calls = self._slots[slot] = {}
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

    def close(self) -> None:
        """Nothing expires any more."""
        if self._timer:
            self._timer.cancel()
        self._slots.clear()

    def _arm(self, slot: int) -> None:
        if self._timer:
            self._timer.cancel()
        self._next = slot
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, slot * _SLOT_S - self._clock()), self._expire)

    def _expire(self) -> None:
        self._timer, self._next = None, math.inf
        now = self._clock() / _SLOT_S
        for slot in [each for each in self._slots if each <= now]:
            for call in tuple(self._slots.pop(slot)):
                call.expire()
        if self._slots:
            self._arm(min(self._slots))
