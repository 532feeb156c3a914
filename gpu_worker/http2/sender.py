"""What goes out on one connection, in which order, and as far as the client's windows let it. Pure.

Control frames and heads go at once; data waits for windows and for the socket, and streams take turns, a few frames each.
Must never hand the socket more than it takes: what waits here is counted and bounded by those who ask to send.
"""

from __future__ import annotations

import collections
import struct
from collections.abc import Callable, Sequence

from gpu_worker.http2 import budget as http2_budget
from gpu_worker.http2 import codes, flow, frames, hpack
from gpu_worker.http2 import limits as http2_limits
from gpu_worker.http2.streams import Buffer, Stream

# Larger frames would keep others waiting without saving anything; of smaller ones so many bytes are a turn.
_MOST_FRAME_BYTES = 2**18
_TURN_BYTES = 2**16
_HEADER = struct.Struct(">BHBBL").pack


class Sender:
    """Gathers in `out` what is to be written; `wake` is called when it is empty no more, `over` when a stream's end is in it."""

    def __init__(
        self,
        limits: http2_limits.Limits,
        budget: http2_budget.Budget,
        clock: Callable[[], float],
        over: Callable[[Stream], None],
    ) -> None:
        self.out: list[Buffer] = []
        self.wake: Callable[[], None] = _asleep
        self.window = codes.FIRST_WINDOW
        self.first_window = codes.FIRST_WINDOW
        self.frame_bytes = codes.LEAST_FRAME_BYTES
        self.held = False
        self.unsent_bytes = 0
        self.progress_s = 0.0
        self.waiting: dict[int, Stream] = {}
        self._ready: dict[int, Stream] = {}
        self._limits = limits
        self._budget = budget
        self._clock = clock
        self._over = over
        self._out_bytes = 0
        self._first_block = True

    def control(self, frame: bytes) -> None:
        """A frame that no window holds back."""
        if not self.out:
            self.wake()
        self.out.append(frame)

    def take(self) -> list[Buffer]:
        """What is to be written now."""
        out, self.out = self.out, []
        self._out_bytes = 0
        return out

    def respond(
        self, stream: Stream, head: frames.Block, parts: Sequence[Buffer], size: int, trailers: frames.Block
    ) -> None:
        """A whole answer: in one go if it fits the windows and a frame."""
        if size > stream.window or size > self.window or size > self.frame_bytes or self.held or stream.pending:
            self.send(stream, head, parts, size)
            self.finish(stream, trailers)
            return
        if self._first_block:
            head = self._first(head)
        number = frames.number(stream.id)
        out = self.out
        if not out:
            self.wake()
        self.window -= size
        between = head.followed.get(size) or head.follow(size)
        out += (head.prefix, number, between, number, *parts, trailers.prefix, number, trailers.body)
        self._budget.sent += 1
        self._over(stream)

    def send(self, stream: Stream, head: frames.Block | None, parts: Sequence[Buffer], size: int) -> None:
        """A part of an answer; goes as far as it can."""
        if head is not None:
            self._put(stream, head)
        if not size:
            return
        if stream.pending is None:
            stream.pending = collections.deque()
        stream.pending += filter(len, parts)
        stream.pending_bytes += size
        self.unsent_bytes += size
        if stream.id not in self.waiting:
            stream.progress_s = self._clock()
            self.waiting[stream.id] = stream
        if stream.window > 0:
            self._ready[stream.id] = stream
        self.pump()

    def finish(self, stream: Stream, trailers: frames.Block) -> None:
        """The end of an answer, after all that waits."""
        if stream.pending:
            stream.trailers = trailers
            return
        self._put(stream, trailers)
        self._over(stream)

    def drop(self, stream: Stream) -> None:
        """Forgets what waits of a stream that is gone."""
        if stream.pending:
            self.unsent_bytes -= stream.pending_bytes
            stream.pending, stream.pending_bytes = None, 0
            self.waiting.pop(stream.id, None)
            self._ready.pop(stream.id, None)

    def pump(self) -> None:
        """Moves what may go to `out`, each stream in turn."""
        ready = self._ready
        while ready and self.window > 0 and not self.held and self._out_bytes < self._limits.write_buffer_bytes:
            identifier = next(iter(ready))
            stream = ready.pop(identifier)
            self._put_data(stream)
            if stream.pending:
                if stream.window > 0:
                    ready[identifier] = stream
            else:
                self._emptied(stream)
            if stream.hungry and stream.pending_bytes < stream.room_bytes:
                stream.hungry = False
                stream.handler.writable()

    def grow(self, increment: int) -> None:
        """The client gives the connection more room. ConnectionFault when that is too much."""
        try:
            self.window = flow.grown(self.window, increment)
        except OverflowError:
            raise codes.ConnectionFault(
                codes.Code.FLOW_CONTROL_ERROR, "the connection's window grew above 2^31-1"
            ) from None
        self.pump()

    def grow_stream(self, stream: Stream, increment: int) -> None:
        """The same for a stream. StreamFault when that is too much."""
        try:
            stream.window = flow.grown(stream.window, increment)
        except OverflowError:
            raise codes.StreamFault(codes.Code.FLOW_CONTROL_ERROR, "the stream's window grew above 2^31-1") from None
        if stream.pending and stream.window > 0:
            self._ready[stream.id] = stream
            self.pump()

    def configure(self, setting: int, value: int, streams: dict[int, Stream]) -> None:
        """A setting of the client's (section 6.5.2, 6.9.2)."""
        if setting == codes.Setting.MAX_FRAME_SIZE:
            self.frame_bytes = min(value, _MOST_FRAME_BYTES)
        elif setting == codes.Setting.INITIAL_WINDOW_SIZE:
            change, self.first_window = value - self.first_window, value
            for stream in tuple(streams.values()):
                self._shift(stream, change)
            self.pump()

    def _shift(self, stream: Stream, change: int) -> None:
        try:
            stream.window = flow.grown(stream.window, change)
        except OverflowError:
            words = "INITIAL_WINDOW_SIZE makes a window grow above 2^31-1"
            raise codes.ConnectionFault(codes.Code.FLOW_CONTROL_ERROR, words) from None
        if stream.window <= 0:
            self._ready.pop(stream.id, None)
        elif stream.pending:
            self._ready[stream.id] = stream

    def _put_data(self, stream: Stream) -> None:
        """A turn of what waits, in frames as large as the windows and the peer let them be."""
        turn = max(self.frame_bytes, _TURN_BYTES)
        size = min(stream.pending_bytes, stream.window, self.window, turn)
        if not self.out:
            self.wake()
        count = self._move(stream, size)
        stream.window -= size
        stream.pending_bytes -= size
        stream.progress_s = self.progress_s = self._clock()
        self.window -= size
        self.unsent_bytes -= size
        self._out_bytes += size
        self._budget.sent += count

    def _move(self, stream: Stream, size: int) -> int:
        """Frames of `size` bytes go to `out`; returns how many."""
        pending, out, most = stream.pending, self.out, self.frame_bytes
        assert pending is not None
        full = _HEADER(most >> 16, most & 0xFFFF, 0, 0, stream.id)
        count = -(-size // most)
        while size:
            room = min(size, most)
            size -= room
            out.append(full if room == most else _HEADER(room >> 16, room & 0xFFFF, 0, 0, stream.id))
            while room:
                part = pending.popleft()
                if len(part) <= room:
                    out.append(part)
                    room -= len(part)
                    continue
                whole = memoryview(part)
                out.append(whole[:room])
                at, room = room, 0
                while size >= most and len(whole) - at >= most:
                    out += (full, whole[at : at + most])
                    at += most
                    size -= most
                if at < len(whole):
                    pending.appendleft(whole[at:])
        return count

    def _emptied(self, stream: Stream) -> None:
        self.waiting.pop(stream.id, None)
        if stream.trailers is not None:
            self._put(stream, stream.trailers)
            self._over(stream)

    def _put(self, stream: Stream, block: frames.Block) -> None:
        if self._first_block:
            block = self._first(block)
        self.control(block.prefix)
        self.out += (frames.number(stream.id), block.body)
        self._budget.sent += 1

    def _first(self, block: frames.Block) -> frames.Block:
        """The connection's first block tells that this encoder keeps no table (RFC 7541 section 4.2)."""
        self._first_block = False
        return frames.Block(hpack.NO_TABLE + block.body, last=block.last)


def _asleep() -> None:
    """Nobody writes yet."""
