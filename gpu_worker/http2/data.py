"""The bodies of requests: DATA frames handed on as they come, without copies, and booked against the windows. Pure.

A frame need not be whole to be handed on. Must never let through more than the windows that were given.
"""

from __future__ import annotations

from typing import Protocol

from gpu_worker.http2 import codes, flow, streams

# A piece keeps all bytes that came with it alive: those that are small beside them are copied out.
COPIED_BYTES = 2**12
_COPIED_PART = 16
# So much of what comes late is one frame that carries nothing; a small frame costs more than its bytes.
_LATE_BYTES = 2**12
_LEAST_LATE_BYTES = 64


class Host(Protocol):
    """What a body asks of its connection."""

    streams: dict[int, streams.Stream]
    settled: bool

    def abandon(self, identifier: int, fault: codes.Fault) -> None: ...

    def credit(self, size: int) -> None: ...

    def is_idle(self, identifier: int) -> bool: ...

    def was_reset(self, identifier: int) -> bool: ...

    def count_idle(self, what: str) -> None: ...


class Body:
    """The DATA frame that is being read; `open` while some of it is still to come."""

    def __init__(self, host: Host, inflow: flow.Inflow) -> None:
        self._host = host
        self._inflow = inflow
        self._stream: streams.Stream | None = None
        self._left = 0
        self._padding = 0
        self._ends = False
        self._late_bytes = 0
        self.open = False

    def take(self, stream: streams.Stream | None, data: bytes, at: int, frame: tuple[int, int, int]) -> int:
        """Takes what has come of a frame (size, flags, stream) whose payload starts at `at`; returns how far that is."""
        size, flags, _identifier = frame
        if (
            stream is not None
            and at + size <= len(data)
            and not flags & codes.PADDED
            and self.fits(stream, size, flags)
        ):
            return self.whole(stream, data, at, (size, flags))
        return self.begin(data, at, frame)

    def fits(self, stream: streams.Stream, size: int, flags: int) -> bool:
        """Whether a frame of `stream` without padding breaks no rule that has to be looked at closer."""
        length = stream.length_left
        return (
            size <= stream.left
            and size <= self._inflow.left
            and not stream.remote_closed
            and (length < 0 or (length == size and flags & codes.END_STREAM != 0))
        )

    def whole(self, stream: streams.Stream, data: bytes, at: int, frame: tuple[int, int]) -> int:
        """Hands on a frame (size, flags) that `fits` and is all there; returns where it ends."""
        size, flags = frame
        end = at + size
        stream.left -= size
        self._inflow.left -= size
        ended = flags & codes.END_STREAM
        if ended:
            stream.remote_closed = True
        elif not size:
            self._host.count_idle("empty DATA")
        stream.handler.data(_piece(data, at, end), bool(ended))
        return end

    def begin(self, data: bytes, at: int, frame: tuple[int, int, int]) -> int:
        """Takes the frame (size, flags, stream) whose payload starts at `at`; returns how far it came.

        Of a padded frame the byte must be there that says how much padding there is.
        """
        size, flags, identifier = frame
        if not identifier or not self._host.settled:
            raise codes.protocol_error("DATA on stream 0, or before SETTINGS")
        padding = 0
        if flags & codes.PADDED:
            padding = self._pad_length(data[at] if size else -1, size)
            at += 1
        if size > self._inflow.left:
            raise codes.ConnectionFault(codes.Code.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        self._inflow.left -= size
        self._left, self._padding = size - padding, max(0, padding - 1)
        self._ends = bool(flags & codes.END_STREAM)
        self._stream = self._accepted(identifier, size)
        if self._stream is None:
            self._host.credit(size)
        elif padding:
            self._stream.taken(padding)
        self.open = True
        return self.go_on(data, at)

    def go_on(self, data: bytes, at: int) -> int:
        """Takes what has come of the open frame; returns how far that is."""
        end = min(len(data), at + self._left)
        self._left -= end - at
        last = not self._left
        if self._stream is not None and (end > at or last):
            self._deliver(self._stream, data, (at, end), last=last)
        at = end
        if last:
            self._stream = None
            end = min(len(data), at + self._padding)
            self._padding -= end - at
            self.open = bool(self._padding)
        return end

    def _deliver(self, stream: streams.Stream, data: bytes, part: tuple[int, int], *, last: bool) -> None:
        at, end = part
        ended = last and self._ends
        if stream.local_closed:
            self._host.credit(end - at)
            return
        if ended:
            stream.remote_closed = True
        if end > at:
            stream.handler.data(_piece(data, at, end), ended)
        elif ended:
            stream.handler.ended()
        else:
            self._host.count_idle("empty DATA")

    def _pad_length(self, length: int, size: int) -> int:
        """Bytes of the payload that are padding, the length's own byte included (section 6.1)."""
        if length < 0:
            raise codes.ConnectionFault(codes.Code.FRAME_SIZE_ERROR, "padded DATA without a pad length")
        if length >= size:
            raise codes.protocol_error("DATA with more padding than payload")
        return length + 1

    def _accepted(self, identifier: int, size: int) -> streams.Stream | None:
        """The stream that takes the frame; None where it is thrown away. The peer hears of it where it should."""
        stream = self._host.streams.get(identifier)
        if stream is None:
            self._check_late(identifier, size)
            return None
        fault = self._fault(stream, size)
        if fault is not None:
            self._host.abandon(identifier, fault)
            return None
        stream.left -= size
        return stream

    def _check_late(self, identifier: int, size: int) -> None:
        if self._host.is_idle(identifier):
            raise codes.protocol_error("DATA on a stream that was never opened")
        if self._host.was_reset(identifier):
            self._count_late(size)
            return
        fault = codes.StreamFault(codes.Code.STREAM_CLOSED, "DATA on a stream that is closed")
        self._host.abandon(identifier, fault)

    def _count_late(self, size: int) -> None:
        """Sent before the client knew, as much as its window allowed, or by one that does not care: that is bounded."""
        self._late_bytes += max(size, _LEAST_LATE_BYTES)
        if self._late_bytes >= _LATE_BYTES:
            self._late_bytes = 0
            self._host.count_idle("DATA of a stream that was reset")

    def _fault(self, stream: streams.Stream, size: int) -> codes.StreamFault | None:
        if stream.remote_closed:
            return codes.StreamFault(codes.Code.STREAM_CLOSED, "DATA after the end of the stream")
        if size > stream.left:
            return codes.StreamFault(codes.Code.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
        if stream.length_left >= 0:
            stream.length_left -= self._left
            if stream.length_left < 0 or (self._ends and stream.length_left):
                return codes.StreamFault(
                    codes.Code.PROTOCOL_ERROR, "content that is not as long as content-length says"
                )
        return None


def _piece(data: bytes, at: int, end: int) -> streams.Buffer:
    size = end - at
    if size < COPIED_BYTES or size * _COPIED_PART < len(data):
        return data[at:end]
    return memoryview(data)[at:end]
