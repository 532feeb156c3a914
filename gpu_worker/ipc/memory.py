"""Memory that two processes share, and the order in which they see each other's stores.

Decides how an area is laid out. An area carries one direction: whoever writes it and whoever reads it are one process
each. Must never be named in a file system: areas are anonymous (memfd_create(2)) and end with the last process that
holds them, however it ends.

The counters are aligned 8-byte words. CPython stores and loads such a word of a memoryview of format ``Q`` with a copy
of constant size, which compilers turn into one instruction, so that no process sees half a count. What the other sees
in which order is the processor's affair: x86-64 lets a load overtake an earlier store, aarch64 lets almost anything
overtake. `fence` rules both out and stands where one side's order is what the other relies on.
"""

from __future__ import annotations

import _thread
import dataclasses
import mmap
import os

PAGE_BYTES = 4096
LINE_BYTES = 64

# Words of the first page, each on a cache line of its own: the two sides store to different ones.
HEAD = 0
TAIL = LINE_BYTES // 8
SLEEPING = 2 * TAIL


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of an area's parts, whole pages; `handles` is the most blocks that can be lent at once.

    Pages take memory once they are touched, and large blocks give theirs back: the arena is room, not cost.
    """

    ring_bytes: int = 4 * 2**20
    handles: int = 2**16
    arena_bytes: int = 4 * 2**30

    @property
    def total_bytes(self) -> int:
        return PAGE_BYTES + self.ring_bytes + self.handles + self.arena_bytes


SIZES = Sizes()


class Area:
    """One direction's memory, mapped: the counters' words, the ring, a byte for each lent block, and the arena."""

    def __init__(self, fd: int, sizes: Sizes = SIZES) -> None:
        self.sizes = sizes
        self.map = mmap.mmap(fd, sizes.total_bytes)
        whole = memoryview(self.map)
        ring_end = PAGE_BYTES + sizes.ring_bytes
        self.arena_start = ring_end + sizes.handles
        self.words = whole[:PAGE_BYTES].cast("Q")
        self.ring = whole[PAGE_BYTES:ring_end]
        self.lent = whole[ring_end : self.arena_start]
        self.arena = whole[self.arena_start :]


def create(name: str, sizes: Sizes = SIZES) -> int:
    """The descriptor of a new area, all zeros. OSError where the system has no more to give."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, sizes.total_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def fence() -> None:
    """Lets no load or store of this thread move from one side of the call to the other.

    Python has no fence; locks have what makes one. Taking a lock is a compare-and-swap, a full fence on x86-64. On
    aarch64 the first release (store-release) keeps all before it in front, the second taking (load-acquire) keeps all
    after it behind, and a load-acquire never overtakes a store-release (Arm ARM, B2.3, "barrier-ordered-before"). The
    lock is a new one each time: a finalizer that runs within this call may fence as well.
    """
    lock = _thread.allocate_lock()
    lock.acquire()
    lock.release()
    lock.acquire()
    lock.release()
