"""The numbers of RFC 9113 (sections 6, 7 and 11), and the two ways in which a peer can be at fault."""

from __future__ import annotations

import enum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
MAX_WINDOW = 2**31 - 1
MAX_STREAM = 2**31 - 1
FIRST_WINDOW = 65535
LEAST_FRAME_BYTES = 2**14
MOST_FRAME_BYTES = 2**24 - 1

# Frame types, section 6. Plain integers: they are compared for each frame.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

# Flags; the same bit means ACK for SETTINGS and PING.
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20


class Setting(enum.IntEnum):
    """Section 6.5.2."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class Code(enum.IntEnum):
    """Error codes, section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Fault(Exception):
    """What a peer did wrong, told in a few words."""

    def __init__(self, code: Code, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words


class ConnectionFault(Fault):
    """The connection cannot go on (section 5.4.1)."""


class StreamFault(Fault):
    """One stream cannot go on (section 5.4.2)."""


def protocol_error(words: str) -> ConnectionFault:
    return ConnectionFault(Code.PROTOCOL_ERROR, words)


def calm(words: str) -> ConnectionFault:
    """For a peer that does what it may, too often."""
    return ConnectionFault(Code.ENHANCE_YOUR_CALM, words)
