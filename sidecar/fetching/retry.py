"""When a read that failed is tried again.

Decides by kind: what passes is tried again after a jittered pause that grows, or the pause that the store asked for. A
read that brings nothing fails after a few tries; all reads of a model together spend from one budget that grows with what
succeeds, so that a store in trouble is not asked ever more often (the throttle of gRPC's proposal A6). Must never try for
ever: each try must bring bytes, and so slow a store that it would take for ever counts as one that does not answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import tenacity
from tenacity import nap

from sidecar import errors

T = TypeVar("T")

_TRIES = 5
_FIRST_S, _CAP_S = 0.1, 3.0
_MOST_ASKED_S = 30.0
_TOKENS, _EARNED = 30.0, 0.1


class Budget:
    """Retries that all reads of a model may still make. Safe in threads."""

    def __init__(self, tokens: float = _TOKENS, earned: float = _EARNED) -> None:
        self._left = self._most = tokens
        self._earned = earned
        self._lock = threading.Lock()

    def spend(self) -> bool:
        """Whether one more is allowed."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def earn(self) -> None:
        """A read succeeded."""
        with self._lock:
            self._left = min(self._left + self._earned, self._most)


class Retries:
    """Tries reads of one model. `pause` waits so many seconds, or shorter when called off."""

    def __init__(
        self, stop: threading.Event, budget: Budget | None = None, pause: Callable[[float], None] | None = None
    ) -> None:
        self._stop = stop
        self._budget = budget or Budget()
        self._pause = pause or nap.sleep_using_event(stop)

    def run(self, read: Callable[[], T], moved: Callable[[], int]) -> T:
        """What `read` answers. `moved` are the bytes that all its tries brought. Raises what it raised, or Stopped."""
        fruitless = _Fruitless(moved)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passes),
            stop=lambda _state: fruitless.too_many() or self._stop.is_set() or not self._budget.spend(),
            wait=_wait_s,
            sleep=self._pause,
            reraise=True,
        )
        try:
            done = retrying(read)
        except errors.ModelFailed as error:
            if self._stop.is_set():
                raise errors.Stopped from error
            raise
        self._budget.earn()
        return done


class _Fruitless:
    """Counts tries that brought nothing since the last that did."""

    def __init__(self, moved: Callable[[], int]) -> None:
        self._moved = moved
        self._before, self._tries = moved(), 0

    def too_many(self) -> bool:
        self._tries = 0 if self._moved() > self._before else self._tries
        self._before = self._moved()
        self._tries += 1
        return self._tries >= _TRIES


def _passes(error: BaseException) -> bool:
    """What the same credentials cannot mend, or a store wants later than is worth waiting here, is for the agent."""
    return (
        isinstance(error, errors.ModelFailed)
        and error.failure.reason == "StoreUnavailable"
        and error.retry_after_s <= _MOST_ASKED_S
    )


_jittered = tenacity.wait_random_exponential(multiplier=_FIRST_S, max=_CAP_S)


def _wait_s(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.retry_after_s if isinstance(error, errors.ModelFailed) else 0.0
    return max(_jittered(state), asked_s + _jittered(state) / 10 if asked_s else 0.0)
