"""How much, how many, how often and how long one HTTP/2 connection may be.

The words beside each limit are its documentation, and a page is generated from them.
"""

from __future__ import annotations

import dataclasses
import math
import random  # noqa: TID251 - spreads the ends of connections, protects and decides nothing
from collections.abc import Mapping

from gpu_worker.http2 import codes

_SPREAD = 0.1


def _limit(default: float, words: str) -> float:
    found: float = dataclasses.field(default=default, metadata={"words": words})
    return found


def _count(default: int, words: str) -> int:
    found: int = dataclasses.field(default=default, metadata={"words": words})
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of each connection, and how many there may be."""

    connections: int = _count(16384, "connections at the same time; one more is told to go")
    streams: int = _count(
        1024, "calls of a connection at the same time, those included that were cancelled and still run"
    )
    frame_bytes: int = _count(2**18, "largest frame taken (MAX_FRAME_SIZE)")
    stream_window_bytes: int = _count(2**21, "bytes of a stream that may be on their way and not yet taken")
    connection_window_bytes: int = _count(2**25, "the same for all streams of a connection together")
    unread_bytes: int = _count(
        2**27, "bytes that streams held up by their answers may keep of it without others having less"
    )
    header_block_bytes: int = _count(2**15, "a request's compressed headers")
    header_list_bytes: int = _count(
        2**14, "a request's headers, unpacked, with 32 bytes for each (MAX_HEADER_LIST_SIZE)"
    )
    header_fields: int = _count(128, "header fields of a request")
    header_table_bytes: int = _count(4096, "memory for header compression (HEADER_TABLE_SIZE)")
    continuations: int = _count(16, "CONTINUATION frames of one request's headers")
    idle_frames: int = _count(1000, "frames in a row that carry nothing (PING, SETTINGS, PRIORITY, empty DATA, ...)")
    resets: int = _count(2000, "streams that a client may reset, or make the server reset, in one go")
    resets_per_s: int = _count(200, "how many more of them it may every second")
    ping_strikes: int = _count(2, "pings that come too early before a connection is closed; 0 for any number")
    ping_interval_s: float = _limit(300.0, "least time between pings while nothing is sent to the client")
    ping_interval_idle_s: float = _limit(
        7200.0, "the same while no call runs, unless pings without calls are permitted"
    )
    keepalive_time_s: float = _limit(7200.0, "silence after which a connection is asked for a sign of life")
    keepalive_timeout_s: float = _limit(20.0, "how long that sign may take")
    keepalive_without_calls: bool = dataclasses.field(
        default=False, metadata={"words": "whether connections without calls are asked, and may ask"}
    )
    keepalive_pings: int = _count(2, "such questions without data between them; 0 for any number")
    stream_unsent_bytes: int = _count(
        2**16, "answers of a streaming call that wait for its client, before it is held up"
    )
    unsent_bytes: int = _count(2**26, "answers that wait for a connection's client, before new calls are refused")
    write_buffer_bytes: int = _count(2**18, "bytes handed to the socket before reading stops until they are taken")
    preface_timeout_s: float = _limit(20.0, "from connect to the client's first settings, and for a TLS handshake")
    header_timeout_s: float = _limit(20.0, "from the first to the last byte of a frame or of a request's headers")
    write_timeout_s: float = _limit(60.0, "how long a client may leave answers untaken without any progress")
    idle_timeout_s: float = _limit(3600.0, "how long a connection without calls is kept")
    linger_s: float = _limit(5.0, "how long the last bytes of a connection may take to be read")
    age_s: float = _limit(0.0, "age at which a connection is told to go, give or take a tenth; 0 for never")
    age_grace_s: float = _limit(math.inf, "time for its calls to end after that")

    def settings(self) -> Mapping[codes.Setting, int]:
        """What a client is told at the start."""
        return {
            codes.Setting.HEADER_TABLE_SIZE: self.header_table_bytes,
            codes.Setting.MAX_CONCURRENT_STREAMS: self.streams,
            codes.Setting.INITIAL_WINDOW_SIZE: self.stream_window_bytes,
            codes.Setting.MAX_FRAME_SIZE: self.frame_bytes,
            codes.Setting.MAX_HEADER_LIST_SIZE: self.header_list_bytes,
        }

    def one_age_s(self) -> float:
        """How old one connection may become: spread, so that clients that came together do not return together."""
        spread = random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311 - see the import
        return self.age_s * spread if self.age_s else math.inf

    @property
    def sweep_s(self) -> float:
        """How often deadlines are looked at: finely enough for the shortest."""
        times = (
            *(self.preface_timeout_s, self.header_timeout_s, self.write_timeout_s, self.idle_timeout_s, self.linger_s),
            *(self.keepalive_time_s, self.keepalive_timeout_s, self.age_s or math.inf, self.age_grace_s),
        )
        return max(0.01, min(1.0, min(times) / 2))
