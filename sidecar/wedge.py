"""Whether the worker gets on: pure, from successive readings of its counters and the outcome of probes.

Decides that a worker is wedged when requests wait in it, nothing has ended and no counter has moved for a time, though
it answers; and that it is unresponsive when it served once and has not answered for a time. One model that takes longer
than that for a single request, with no other traffic, looks the same: the time must be longer than any request. Must
never read a clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

WEDGED = "WorkerWedged"
UNRESPONSIVE = "WorkerUnresponsive"


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What the worker said: requests in it (waiting or running), and all counters that progress moves."""

    in_flight: int
    progress: Hashable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is known so far; times in seconds of one monotonic clock.

    `stuck_since_s` is when requests were first seen in the worker with the present counters, None with none in it. `answered_at_s` is the
    last answer of this life of the worker, None before the first.
    """

    reading: Reading | None = None
    stuck_since_s: float | None = None
    answered_at_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Trouble:
    """Why the worker does not get on: a stable word and a sentence."""

    reason: str
    message: str


def read(before: Watched, reading: Reading, now_s: float) -> Watched:
    """After a reading of the counters."""
    moved = before.reading is None or before.reading.progress != reading.progress
    if not reading.in_flight:
        since_s = None
    elif moved or before.stuck_since_s is None:
        since_s = now_s
    else:
        since_s = before.stuck_since_s
    return Watched(reading=reading, stuck_since_s=since_s, answered_at_s=now_s)


def answered(before: Watched, now_s: float) -> Watched:
    """After a probe that was answered."""
    return dataclasses.replace(before, answered_at_s=now_s)


def restarted() -> Watched:
    """A new life of the worker: nothing is known of it."""
    return Watched()


def trouble(watched: Watched, now_s: float, wedged_after_s: float, silent_after_s: float) -> Trouble | None:
    """What is wrong at this moment; `wedged_after_s` 0 never calls a worker wedged."""
    if watched.answered_at_s is not None and now_s - watched.answered_at_s >= silent_after_s:
        return Trouble(UNRESPONSIVE, f"no answer for {now_s - watched.answered_at_s:.0f} s")
    if not wedged_after_s or watched.stuck_since_s is None or watched.reading is None:
        return None
    stuck_s = now_s - watched.stuck_since_s
    if stuck_s < wedged_after_s:
        return None
    return Trouble(
        WEDGED, f"{watched.reading.in_flight} requests are in the worker, none has ended for {stuck_s:.0f} s"
    )
