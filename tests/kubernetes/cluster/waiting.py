"""Waits for what a cluster does in its own time. Bounded always; asks often, since most of it takes milliseconds."""

from __future__ import annotations

import collections.abc
import threading
import time
import typing

_Answer = typing.TypeVar("_Answer")
_PAUSE_S = 0.05


def until(
    ask: collections.abc.Callable[[], _Answer],
    good: collections.abc.Callable[[_Answer], object],
    limit_s: float = 30.0,
) -> _Answer:
    """Asks until the answer is good, and gives it.

    Raises:
        TimeoutError: with the last answer, when none was good within `limit_s`.
    """
    deadline, never = time.monotonic() + limit_s, threading.Event()
    while not good(answer := ask()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:.0f} s; the last answer was {answer!r}")
        never.wait(_PAUSE_S)
    return answer
