"""Dynamic batching as a pure policy: what waits, and now, give a batch to run or a moment to look again.

A batch is always a prefix of the queue, so order is kept and nobody is overtaken. Times are nanoseconds on one
monotonic clock. The policy reads the queue and changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from typing import Protocol


class Waiting(Protocol):
    """A request in the queue: items in it, since when it waits, and what it must share with others of its batch."""

    @property
    def size(self) -> int: ...

    @property
    def arrival_ns(self) -> int: ...

    @property
    def key(self) -> Hashable: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How requests are gathered. `dynamic` off: every request runs alone. Sizes count items, not requests."""

    max_batch_size: int = 0
    dynamic: bool = False
    preferred_sizes: frozenset[int] = frozenset()
    max_delay_ns: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """Run the first `take` requests now, or (`take` 0) look again at `wait_until_ns`, or when more come (None)."""

    take: int = 0
    wait_until_ns: int | None = None


_NOTHING = Decision()
_ONE = Decision(take=1)


def decide(queue: Iterable[Waiting], now_ns: int, config: Config) -> Decision:
    """What an idle instance does with this queue now. It is iterated over more than once."""
    if not config.dynamic:
        return _ONE if any(True for _ in queue) else _NOTHING
    waiting = iter(queue)
    first = next(waiting, None)
    if first is None:
        return _NOTHING
    prefix = _prefix(first, waiting, config)
    if prefix.preferred:
        return Decision(take=prefix.preferred)
    if prefix.closed or not config.max_delay_ns:
        return Decision(take=prefix.count)
    # With levels the first need not be the oldest. What is not closed is the whole queue.
    due_ns = min([each.arrival_ns for each in queue]) + config.max_delay_ns
    if now_ns >= due_ns:
        return Decision(take=prefix.count)
    return Decision(wait_until_ns=due_ns)


@dataclasses.dataclass(slots=True)
class _Prefix:
    """The longest run of requests that may share a batch.

    `preferred` is the count of requests that makes the largest preferred size, 0 if none does. `closed` tells that
    waiting can add nothing.
    """

    count: int
    items: int
    preferred: int = 0
    closed: bool = False


def _prefix(first: Waiting, rest: Iterable[Waiting], config: Config) -> _Prefix:
    prefix = _Prefix(1, first.size)
    _note_preferred(prefix, config)
    for request in rest:
        if request.key != first.key or prefix.items + request.size > config.max_batch_size:
            prefix.closed = True
            break
        prefix.count += 1
        prefix.items += request.size
        _note_preferred(prefix, config)
    prefix.closed = prefix.closed or prefix.items >= config.max_batch_size
    return prefix


def _note_preferred(prefix: _Prefix, config: Config) -> None:
    if prefix.items in config.preferred_sizes:
        prefix.preferred = prefix.count
