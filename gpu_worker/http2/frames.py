"""Frames to bytes and payloads to values (RFC 9113 section 6). Pure.

Checks what a payload's own bytes can tell: its size, padding and ranges. Whether a frame may come at all is decided
where the streams are known.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from gpu_worker.http2 import codes

# Length in two parts (a 24-bit number has no format of its own), type, flags, stream.
header_of = struct.Struct(">BHBBL").unpack_from
_HEADER = struct.Struct(">BHBBL").pack
_SETTING = struct.Struct(">HL")
_LONG = struct.Struct(">L")
_TWO_LONGS = struct.Struct(">LL").pack

number = _LONG.pack
"""A stream's id, as it ends a frame's header."""

_BIT31 = 2**31 - 1
_MOST_SETTINGS = 32
_MOST_FOLLOWED = 1024
PRIORITY_BYTES = 5


def opening(size: int, kind: int, flags: int) -> bytes:
    """The five bytes of a frame's header before its stream."""
    return _HEADER(size >> 16, size & 0xFFFF, kind, flags, 0)[:5]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return _HEADER(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def settings(values: Mapping[codes.Setting, int]) -> bytes:
    payload = b"".join(_SETTING.pack(setting, value) for setting, value in values.items())
    return frame(codes.SETTINGS, 0, 0, payload)


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    return frame(codes.PING, codes.ACK if ack else 0, 0, payload)


def go_away(last: int, code: codes.Code, words: bytes = b"") -> bytes:
    return frame(codes.GOAWAY, 0, 0, _TWO_LONGS(last, code) + words)


def window_update(stream: int, increment: int) -> bytes:
    return frame(codes.WINDOW_UPDATE, 0, stream, _LONG.pack(increment))


def reset(stream: int, code: int) -> bytes:
    return frame(codes.RST_STREAM, 0, stream, _LONG.pack(code))


class Block:
    """A header block made ready for HEADERS: the five bytes before the stream, and what comes after it.

    `followed` has, by the size of a DATA frame that comes next, what stands between the stream's number and its number
    there.
    """

    __slots__ = ("body", "followed", "prefix")

    def __init__(self, body: bytes, *, last: bool) -> None:
        """With `last` nothing follows on the stream. ValueError for a block that every peer's frames may not hold."""
        if len(body) >= codes.LEAST_FRAME_BYTES:
            raise ValueError(f"a header block of {len(body)} bytes does not fit one frame")
        flags = codes.END_HEADERS | codes.END_STREAM if last else codes.END_HEADERS
        self.prefix = opening(len(body), codes.HEADERS, flags)
        self.body = body
        self.followed: dict[int, bytes] = {}

    def follow(self, size: int) -> bytes:
        """What `followed` has for `size`, from now on."""
        if len(self.followed) >= _MOST_FOLLOWED:
            self.followed.clear()
        found = self.followed[size] = self.body + opening(size, codes.DATA, 0)
        return found

    @property
    def last(self) -> bool:
        return bool(self.prefix[4] & codes.END_STREAM)


def _end() -> Block:
    block = Block(b"", last=True)
    block.prefix = opening(0, codes.DATA, codes.END_STREAM)
    return block


END = _end()
"""An empty DATA frame in the place of trailers: ends an answer that has none."""


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Pairs of setting and value, unknown settings left out (section 6.5). ConnectionFault for a bad size or value."""
    if len(payload) % _SETTING.size:
        raise codes.ConnectionFault(codes.Code.FRAME_SIZE_ERROR, "SETTINGS of a size that is no multiple of 6")
    if len(payload) > _SETTING.size * _MOST_SETTINGS:
        raise codes.calm("SETTINGS with too many settings")
    found = []
    for setting, value in _SETTING.iter_unpack(payload):
        _check_setting(setting, value)
        found.append((setting, value))
    return found


def _check_setting(setting: int, value: int) -> None:
    if setting == codes.Setting.ENABLE_PUSH and value > 1:
        raise codes.protocol_error("ENABLE_PUSH must be 0 or 1")
    if setting == codes.Setting.INITIAL_WINDOW_SIZE and value > codes.MAX_WINDOW:
        raise codes.ConnectionFault(codes.Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE above 2^31-1")
    if setting == codes.Setting.MAX_FRAME_SIZE and not codes.LEAST_FRAME_BYTES <= value <= codes.MOST_FRAME_BYTES:
        raise codes.protocol_error("MAX_FRAME_SIZE must be from 2^14 to 2^24-1")


def read_number(payload: bytes, kind: str) -> int:
    """The one 32-bit number of RST_STREAM or WINDOW_UPDATE; the reserved bit is left in."""
    if len(payload) != _LONG.size:
        raise codes.ConnectionFault(codes.Code.FRAME_SIZE_ERROR, f"{kind} must have 4 bytes")
    value: int = _LONG.unpack(payload)[0]
    return value


def read_increment(payload: bytes) -> int:
    """Of WINDOW_UPDATE (section 6.9); may be 0, whose meaning depends on the stream."""
    return read_number(payload, "WINDOW_UPDATE") & _BIT31


def read_go_away(payload: bytes) -> tuple[int, int]:
    """Last stream and error code (section 6.8)."""
    if len(payload) < 2 * _LONG.size:
        raise codes.ConnectionFault(codes.Code.FRAME_SIZE_ERROR, "GOAWAY must have at least 8 bytes")
    last, code = _LONG.unpack_from(payload)[0], _LONG.unpack_from(payload, _LONG.size)[0]
    return last & _BIT31, code


def read_fragment(payload: bytes, flags: int) -> bytes:
    """The header fragment of a HEADERS frame without padding and priority (section 6.2)."""
    padding = 0
    if flags & codes.PADDED:
        if not payload:
            raise codes.ConnectionFault(codes.Code.FRAME_SIZE_ERROR, "padded HEADERS without a pad length")
        padding, payload = payload[0], payload[1:]
    if flags & codes.PRIORITIZED:
        if len(payload) < PRIORITY_BYTES:
            raise codes.ConnectionFault(codes.Code.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
        payload = payload[PRIORITY_BYTES:]
    if padding > len(payload):
        raise codes.protocol_error("HEADERS with more padding than payload")
    return payload[: len(payload) - padding]


def own_priority(payload: bytes, flags: int, stream: int) -> bool:
    """Whether HEADERS makes its stream depend on itself (RFC 7540 section 5.3.1)."""
    at = 1 if flags & codes.PADDED else 0
    return bool(flags & codes.PRIORITIZED) and depends_on(payload[at:], stream)


def depends_on(priority: bytes, stream: int) -> bool:
    """Whether `priority` names `stream`; else priorities are ignored (RFC 9113 section 5.3.2)."""
    return bool(_LONG.unpack_from(priority)[0] & _BIT31 == stream)
