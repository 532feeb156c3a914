"""A ring of records between one writer and one reader in different processes.

Decides how records lie in the ring and who wakes whom. Must never wait: a full ring refuses, an empty one has nothing.

Records are contiguous and start at multiples of 8; one that does not fit before the end leaves a mark there and starts
at 0. `head` and `tail` count bytes since the beginning and never wrap in practice. The writer alone stores `head`, the
reader alone stores `tail`. Bytes are written before the head that covers them, and read before the tail that gives
them back. A reader that finds nothing says that it sleeps and then looks once more; a writer moves the head and then
looks at that word. Between store and look each has a fence, so that one of them sees the other: no wake-up is lost, and
while the reader is awake nobody makes a system call.
"""

from __future__ import annotations

import struct
from typing import Protocol

from gpu_worker.ipc import memory
from gpu_worker.ipc.malformed import MalformedError

_LENGTH = struct.Struct("=II")
_WRAPPED = 0xFFFFFFFF
_START = _LENGTH.size


class Words(Protocol):
    """The counters: a memoryview of format Q."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


def longest_bytes(ring_bytes: int) -> int:
    """The longest record that a ring of this size takes once it is empty, wherever its head is."""
    return ring_bytes // 2 - _START


class Writer:
    """The writing side. Records are there for the reader once `publish` was called."""

    def __init__(self, words: Words, data: memoryview) -> None:
        self._words = words
        self._data = data
        self._size = len(data)
        self._head = self._published = words[memory.HEAD]
        self._tail = words[memory.TAIL]

    def write(self, record: bytes) -> bool:
        """Appends the record; False, and nothing is written, where there is no room. ValueError if it never has."""
        length = len(record)
        if length > longest_bytes(self._size):
            raise ValueError(f"a record of {length} bytes is longer than the ring takes")
        need = _START + _whole(length)
        at = self._head % self._size
        left = self._size - at
        gap = left if need > left else 0
        if not self._has_room(need + gap):
            return False
        if gap:
            _LENGTH.pack_into(self._data, at, _WRAPPED, 0)
            at = 0
        _LENGTH.pack_into(self._data, at, length, 0)
        self._data[at + _START : at + _START + length] = record
        self._head += need + gap
        return True

    def publish(self) -> bool:
        """Shows the reader what was written; True if it sleeps and is to be woken."""
        if self._head == self._published:
            return False
        memory.fence()
        self._words[memory.HEAD] = self._published = self._head
        memory.fence()
        if not self._words[memory.SLEEPING]:
            return False
        self._words[memory.SLEEPING] = 0
        return True

    def _has_room(self, need: int) -> bool:
        if self._size - (self._head - self._tail) >= need:
            return True
        self._tail = self._words[memory.TAIL]
        memory.fence()
        return self._size - (self._head - self._tail) >= need


class Reader:
    """The reading side. What was read is the writer's again once `release` was called."""

    def __init__(self, words: Words, data: memoryview) -> None:
        self._words = words
        self._data = data
        self._size = len(data)
        self._head = self._tail = self._released = words[memory.TAIL]

    def read(self) -> bytes | None:
        """A copy of the next record; None where there is none. Raises MalformedError."""
        if self._tail == self._head and not self._look():
            return None
        at = self._tail % self._size
        length = self._length(at)
        if length == _WRAPPED:
            self._tail += self._size - at
            self._check(self._tail < self._head)
            at = 0
            length = self._length(at)
        start = at + _START
        self._check(length <= self._size - start and self._tail + _START + _whole(length) <= self._head)
        self._tail += _START + _whole(length)
        return bytes(self._data[start : start + length])

    def release(self) -> None:
        if self._tail != self._released:
            memory.fence()
            self._words[memory.TAIL] = self._released = self._tail

    def sleep(self) -> bool:
        """Says that the writer must wake this side; False if there is something to read after all."""
        self._words[memory.SLEEPING] = 1
        memory.fence()
        if self._words[memory.HEAD] == self._tail:
            return True
        self._words[memory.SLEEPING] = 0
        return False

    def _look(self) -> bool:
        head = self._words[memory.HEAD]
        if head == self._head:
            return False
        memory.fence()
        self._check(self._head < head <= self._tail + self._size and head % _START == 0)
        self._head = head
        return True

    def _length(self, at: int) -> int:
        length: int = _LENGTH.unpack_from(self._data, at)[0]
        return length

    def _check(self, holds: bool) -> None:  # noqa: FBT001 - a condition is all it takes
        if not holds:
            raise MalformedError(f"the ring is broken at {self._tail}")


def _whole(length: int) -> int:
    return (length + 7) & ~7
