"""One direction between two processes: messages with buffers, small ones in the ring, large ones lent from the arena.

Decides where bytes travel. All buffers of a message lie behind each other in one place. A sender copies them there: that
is the one copy of this direction where the place is a block of the arena, which the receiver reads where it lies. Up to
`INLINE_BYTES` they travel in the ring and the receiver copies them out with the message, which costs less than a loan.
Must never wait: `send` refuses where there is no room.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Sequence

from gpu_worker.ipc import arena, memory, ring
from gpu_worker.ipc.malformed import MalformedError

Buffer = bytes | bytearray | memoryview

INLINE_BYTES = 16 * 2**10
_ALIGNED_BYTES = 16
# Kind, flags, whether the head is in the arena, buffers, number, bytes of the head, handle, offset, bytes of the buffers.
_RECORD = struct.Struct("=BBHIQIIQQ")
_INLINE = 0xFFFFFFFF
_MOST = 2**32 - 1


@dataclasses.dataclass(slots=True)
class Message:
    """`number` says which request or call it is about; the meaning of `kind`, `flags` and `head` is the sender's."""

    kind: int
    number: int
    head: bytes = b""
    buffers: Sequence[Buffer] = ()
    flags: int = 0

    @property
    def size_bytes(self) -> int:
        return len(self.head) + sum(map(len, self.buffers))


class Sender:
    """`doorbell` is the eventfd on which the receiver waits."""

    def __init__(self, area: memory.Area, doorbell: int) -> None:
        self._arena = area.arena
        self._lender = arena.Lender(area)
        self._ring = ring.Writer(area.words, area.ring)
        self._doorbell = doorbell
        self._inline_bytes = min(INLINE_BYTES, area.sizes.ring_bytes // 8)
        # The record says how long its head is in 32 bits.
        self._most_bytes = min(area.sizes.arena_bytes - memory.PAGE_BYTES, _MOST)

    def check(self, message: Message) -> None:
        """Raises ValueError where there will never be room for the message."""
        size_bytes = message.size_bytes + (_ALIGNED_BYTES + 8) * len(message.buffers)
        if size_bytes > self._most_bytes:
            raise ValueError(f"{message.size_bytes} bytes are more than can be sent at all")

    def send(self, message: Message) -> bool:
        """Puts the message in; it is under way once `publish` was called. False, and nothing is sent, without room."""
        views = [_flat(buffer) for buffer in message.buffers]
        lengths = [len(view) for view in views]
        head = struct.pack(f"={len(lengths)}Q", *lengths) + message.head
        away = len(head) > self._inline_bytes
        if away:
            views.insert(0, memoryview(head))
        size = sum(_aligned(len(view)) for view in views)
        fixed = (message.kind, message.flags, int(away), len(lengths), message.number, len(head))
        if size <= self._inline_bytes:
            record = [_RECORD.pack(*fixed, _INLINE, 0, size), head]
            return self._ring.write(_joined(record, views))
        return self._lend(fixed, head if not away else b"", views, size)

    def publish(self) -> None:
        """Sends what was put in, and wakes a receiver that sleeps."""
        if self._ring.publish():
            os.eventfd_write(self._doorbell, 1)

    @property
    def lent_bytes(self) -> int:
        """Bytes that the receiver has not given back yet."""
        self._lender.look()
        return self._lender.lent_bytes

    def _lend(self, fixed: tuple[int, ...], head: bytes, views: Sequence[memoryview], size: int) -> bool:
        block = self._lender.lend(size)
        if block is None:
            return False
        handle, offset = block
        at = offset
        for view in views:
            self._arena[at : at + len(view)] = view
            at += _aligned(len(view))
        if self._ring.write(_RECORD.pack(*fixed, handle, offset, size) + head):
            return True
        self._lender.take_back(handle)
        return False


class Receiver:
    """`doorbell` is the eventfd on which to wait once `sleep` said so."""

    def __init__(self, area: memory.Area, doorbell: int, *, writeable: bool = False) -> None:
        """`writeable` lets this side write to the blocks that it borrows."""
        self._borrower = arena.Borrower(area, writeable=writeable)
        self._ring = ring.Reader(area.words, area.ring)
        self.doorbell = doorbell

    @property
    def borrowed(self) -> int:
        """Blocks that something here still refers to."""
        return self._borrower.count

    def receive(self) -> Message | None:
        """The next message, its buffers read-only; None where there is none. Raises MalformedError."""
        record = self._ring.read()
        if record is None:
            return None
        if len(record) < _RECORD.size:
            raise MalformedError("a record is cut short")
        kind, flags, away, count, number, head_bytes, handle, offset, size = _RECORD.unpack_from(record)
        rest = memoryview(record)[_RECORD.size :]
        if handle == _INLINE:
            start = _aligned(_RECORD.size + head_bytes) - _RECORD.size
            head, region = rest[:head_bytes], rest[start:]
        else:
            region = self._region(handle, offset, size)
            head = region[:head_bytes] if away else rest
        if len(head) != head_bytes or len(region) != size or 8 * count > head_bytes:
            raise MalformedError("a message is cut short")
        lengths = struct.unpack_from(f"={count}Q", head)
        buffers = _split(region, lengths, _aligned(head_bytes) if away else 0)
        return Message(kind, number, bytes(head[8 * count :]), buffers, flags)

    def release(self) -> None:
        """Gives the ring's bytes of all received messages back."""
        self._ring.release()

    def sleep(self) -> bool:
        """Asks to be woken through the doorbell; False if there is something to receive after all."""
        return self._ring.sleep()

    def silence(self) -> None:
        """Takes note of the doorbell."""
        try:
            os.eventfd_read(self.doorbell)
        except BlockingIOError:
            return

    def _region(self, handle: int, offset: int, size: int) -> memoryview:
        region = self._borrower.borrow(handle, offset, size)
        # Slow readers must not starve the others of this process: near the end of the room, their bytes move out.
        return memoryview(bytes(region)) if self._borrower.crowded(offset) else region


def _flat(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _joined(parts: list[bytes], views: Sequence[memoryview]) -> bytes:
    """The record, its buffers aligned as the receiver's copy of it will be."""
    whole: list[bytes | memoryview] = [*parts]
    length = sum(map(len, parts))
    for view in views:
        whole += (bytes(_aligned(length) - length), view)
        length = _aligned(length) + len(view)
    whole.append(bytes(_aligned(length) - length))
    return b"".join(whole)


def _split(region: memoryview, lengths: Sequence[int], start: int) -> list[memoryview]:
    buffers = []
    for length in lengths:
        if start + length > len(region):
            raise MalformedError("a buffer is cut short")
        buffers.append(region[start : start + length])
        start += _aligned(length)
    return buffers
