"""The queues of one model version as pure structures: who waits, who is served next, who may wait no longer.

A plain queue is first come, first served. A levelled one serves its levels in order, 1 before 2, and within a level those
whose patience lasts before those that were delayed. That, and what a full queue and a passed time-out do, is Triton's
schedule policy. Reads no clock, locks nothing, knows no threads.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from gpu_worker.engine import spec, work


@dataclasses.dataclass(slots=True)
class Taken:
    """Works that are to run, and those whose client has gone or whose time has passed."""

    works: list[work.Work]
    dead: list[work.Work]


class Queue(Protocol):
    """Iterates over what waits, in the order of service. Times are monotonic nanoseconds."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[work.Work]: ...

    def add(self, works: Sequence[work.Work]) -> Sequence[work.Work]:
        """Takes the works in, in their order; gives back those that there is no room for."""
        ...

    def settle(self, now_ns: int, most: int) -> None:
        """Lets those step back that have lost patience by now, as far as the next `most` works are concerned."""
        ...

    def take(self, count: int, now_ns: int) -> Taken:
        """Takes out the next `count` works."""
        ...

    def purge(self, now_ns: int) -> list[work.Work]:
        """Takes out the dead."""
        ...

    def clear(self) -> list[work.Work]:
        """Takes out all."""
        ...

    def moments(self) -> Iterator[int]:
        """When something changes by itself: a time-out, a deadline."""
        ...


def made(model: spec.ModelSpec) -> Queue:
    """The queue that the model's policy asks for, the plain one where it does."""
    priorities = model.priorities
    if priorities.levels or model.queue.delays:
        return Levelled(model.queue, priorities)
    return Plain(model.queue.max_size)


class Plain:
    """First come, first served; at most `max_size` wait (0: no bound)."""

    def __init__(self, max_size: int = 0) -> None:
        self._max_size = max_size
        self._works: collections.deque[work.Work] = collections.deque()

    def __len__(self) -> int:
        return len(self._works)

    def __iter__(self) -> Iterator[work.Work]:
        return iter(self._works)

    def add(self, works: Sequence[work.Work]) -> Sequence[work.Work]:
        if not self._max_size:
            self._works.extend(works)
            return ()
        room = max(0, self._max_size - len(self._works))
        self._works.extend(works[:room])
        return works[room:]

    def settle(self, now_ns: int, most: int) -> None:
        """Nobody steps back here."""

    def take(self, count: int, now_ns: int) -> Taken:
        taken = Taken([], [])
        next_work = self._works.popleft
        for _ in range(count):
            each = next_work()
            (taken.dead if _ended(each, now_ns) else taken.works).append(each)
        return taken

    def purge(self, now_ns: int) -> list[work.Work]:
        dead = [each for each in self._works if _ended(each, now_ns)]
        if dead:
            gone = set(dead)
            self._works = collections.deque(each for each in self._works if each not in gone)
        return dead

    def clear(self) -> list[work.Work]:
        left = list(self._works)
        self._works.clear()
        return left

    def moments(self) -> Iterator[int]:
        return (each.deadline_ns for each in self._works if each.deadline_ns is not None)


# Ordered as a linked list: taken from its front, and from its middle, without a look at the others.
_Row = collections.OrderedDict[work.Work, None]


@dataclasses.dataclass(slots=True)
class _Level:
    waiting: _Row = dataclasses.field(default_factory=_Row)
    delayed: _Row = dataclasses.field(default_factory=_Row)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.delayed)

    def __iter__(self) -> Iterator[work.Work]:
        return itertools.chain(self.waiting, self.delayed)

    def settle(self, now_ns: int, most: int) -> None:
        patient = 0
        late: list[work.Work] = []
        for each in self.waiting:
            if each.delay_ns is not None and now_ns >= each.delay_ns:
                late.append(each)
            else:
                patient += 1
            if patient >= most:
                break
        for each in late:
            del self.waiting[each]
            self.delayed[each] = None

    def next(self) -> work.Work:
        return (self.waiting or self.delayed).popitem(last=False)[0]

    def drop(self, each: work.Work) -> None:
        del (self.waiting if each in self.waiting else self.delayed)[each]


class Levelled:
    """As the priorities say. Holds only levels in which somebody waits: there may be 2^64 of them."""

    def __init__(self, default: spec.QueuePolicy, priorities: spec.Priorities) -> None:
        self._default = default
        self._policies = priorities.policies
        self._levels: dict[int, _Level] = {}
        self._order: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __iter__(self) -> Iterator[work.Work]:
        return itertools.chain.from_iterable(self._levels[level] for level in self._order)

    def add(self, works: Sequence[work.Work]) -> Sequence[work.Work]:
        return [each for each in works if not self._admit(each)]

    def settle(self, now_ns: int, most: int) -> None:
        for level in self._order:
            self._levels[level].settle(now_ns, most)
            most -= len(self._levels[level])
            if most <= 0:
                return

    def take(self, count: int, now_ns: int) -> Taken:
        taken = Taken([], [])
        for _ in range(count):
            level = self._levels[self._order[0]]
            each = level.next()
            (taken.dead if _ended(each, now_ns) else taken.works).append(each)
            if not level:
                self._forget(self._order[0])
        return taken

    def purge(self, now_ns: int) -> list[work.Work]:
        dead = [each for each in self if _ended(each, now_ns)]
        for each in dead:
            self._levels[each.level].drop(each)
        self._sweep({each.level for each in dead})
        return dead

    def clear(self) -> list[work.Work]:
        left = list(self)
        self._levels.clear()
        self._order.clear()
        return left

    def moments(self) -> Iterator[int]:
        for level in self._levels.values():
            yield from (each.delay_ns for each in level.waiting if each.delay_ns is not None)
            yield from (each.deadline_ns for each in level if each.deadline_ns is not None)

    def _admit(self, each: work.Work) -> bool:
        level = self._levels.get(each.level)
        limit = self._policies.get(each.level, self._default).max_size
        if level is None:
            level = self._levels[each.level] = _Level()
            bisect.insort(self._order, each.level)
        elif limit and len(level) >= limit:
            return False
        level.waiting[each] = None
        return True

    def _sweep(self, levels: Iterable[int]) -> None:
        for number in levels:
            if not self._levels[number]:
                self._forget(number)

    def _forget(self, number: int) -> None:
        del self._levels[number]
        del self._order[bisect.bisect_left(self._order, number)]


def _ended(each: work.Work, now_ns: int) -> bool:
    return each.request.cancelled or (each.deadline_ns is not None and now_ns >= each.deadline_ns)
