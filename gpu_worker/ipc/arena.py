"""Blocks of shared memory that the writer of an area lends to its reader.

Decides where a block lies (first fit, so that the same pages are used again) and when its pages go back to the system.
Must never lend a byte twice. A block's handle is an index into the area's bytes of lent blocks: the writer stores 1 with
the loan, the reader stores 0 when the last view of the block is gone, in whichever thread that happens, and the writer
finds it so when it next looks. Each byte has one side at a time that may store it; there is nothing to lock.
"""

from __future__ import annotations

import bisect
import functools
import mmap
import weakref
from typing import Any

import numpy as np

from gpu_worker.ipc import memory
from gpu_worker.ipc.malformed import MalformedError

_EAGER = 32
_WARM_BYTES = 64 * 2**20
_LARGE_BYTES = 2**20


class Lender:
    """The writing side: lends blocks, and finds those that were given back."""

    def __init__(self, area: memory.Area) -> None:
        self._area = area
        self._handles = list(range(area.sizes.handles - 1, -1, -1))
        self._lent: dict[int, tuple[int, int]] = {}
        self._starts = [0]
        self._free = {0: area.sizes.arena_bytes}
        self._since_look = 0
        self._touched = 0

    @property
    def lent_bytes(self) -> int:
        """Bytes out on loan as far as is known; what was given back since the last look is still counted."""
        return sum(size for _, size in self._lent.values())

    def lend(self, size_bytes: int) -> tuple[int, int] | None:
        """Handle and offset of a block of so many bytes; None where there is no room."""
        size = -(-size_bytes // memory.LINE_BYTES) * memory.LINE_BYTES
        self._since_look += 1
        if len(self._lent) <= _EAGER or 2 * self._since_look > len(self._lent):
            self.look()
        offset = self._take(size)
        if offset is None:
            self.look()
            offset = self._take(size)
        if offset is None:
            return None
        handle = self._handles.pop()
        self._lent[handle] = offset, size
        self._touched = max(self._touched, offset + size)
        self._area.lent[handle] = 1
        return handle, offset

    def take_back(self, handle: int) -> None:
        """Ends a loan that the reader was never told of."""
        self._area.lent[handle] = 0
        self._end(handle)

    def look(self) -> None:
        """Takes back what the reader has given back."""
        self._since_look = 0
        lent = self._area.lent
        back = [handle for handle in self._lent if not lent[handle]]
        if back:
            memory.fence()
        for handle in back:
            self._end(handle)
        if not self._lent and self._touched > _WARM_BYTES:
            self._cool(_WARM_BYTES, self._touched)
            self._touched = _WARM_BYTES

    def _take(self, size: int) -> int | None:
        if not self._handles:
            return None
        for index, start in enumerate(self._starts):
            room = self._free[start]
            if room < size:
                continue
            del self._free[start]
            if room == size:
                del self._starts[index]
            else:
                self._starts[index] = start + size
                self._free[start + size] = room - size
            return start
        return None

    def _end(self, handle: int) -> None:
        start, size = self._lent.pop(handle)
        self._handles.append(handle)
        if size >= _LARGE_BYTES and start >= _WARM_BYTES:
            self._cool(start, start + size)
        index = bisect.bisect(self._starts, start)
        if index < len(self._starts) and self._starts[index] == start + size:
            size += self._free.pop(self._starts.pop(index))
        before = self._starts[index - 1] if index else None
        if before is not None and before + self._free[before] == start:
            self._free[before] += size
        else:
            self._starts.insert(index, start)
            self._free[start] = size

    def _cool(self, start: int, end: int) -> None:
        """Gives whole pages back to the system; they read as zeros when touched again."""
        first = -(-(self._area.arena_start + start) // memory.PAGE_BYTES) * memory.PAGE_BYTES
        last = (self._area.arena_start + end) // memory.PAGE_BYTES * memory.PAGE_BYTES
        if last > first:
            self._area.map.madvise(mmap.MADV_REMOVE, first, last - first)


class Borrower:
    """The reading side: views of blocks, each given back when nothing refers to it any more."""

    def __init__(self, area: memory.Area, *, writeable: bool = False) -> None:
        self._area = area
        self._writeable = writeable
        self._loans: dict[int, weakref.ref[Any]] = {}

    @property
    def count(self) -> int:
        """Blocks in use."""
        return len(self._loans)

    def borrow(self, handle: int, offset: int, size_bytes: int) -> memoryview:
        """The block, read-only unless asked otherwise. Whatever is made of it without copying keeps it lent. Raises MalformedError."""
        area = self._area
        known = 0 <= handle < area.sizes.handles and handle not in self._loans and area.lent[handle] == 1
        if not known or size_bytes < 1 or offset < 0 or offset + size_bytes > area.sizes.arena_bytes:
            raise MalformedError(f"block {handle} at {offset} of {size_bytes} bytes cannot be lent")
        # The array is what views, slices and arrays of them refer to: it goes when the last of those goes.
        block: np.ndarray[Any, Any] = np.frombuffer(area.map, np.uint8, size_bytes, area.arena_start + offset)
        block.flags.writeable = self._writeable
        self._loans[handle] = weakref.ref(block, functools.partial(self._returned, handle))
        return block.data

    def crowded(self, offset: int) -> bool:
        """Whether the writer is running out of room: it lends the first that is free, and that was this far."""
        return offset > self._area.sizes.arena_bytes // 2

    def _returned(self, handle: int, _gone: weakref.ref[Any]) -> None:
        # In any thread, at any moment: what this does must be safe between any two instructions of the others.
        self._loans.pop(handle, None)
        memory.fence()
        self._area.lent[handle] = 0
