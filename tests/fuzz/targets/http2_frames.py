"""Frames into one HTTP/2 connection: the same outcome however they are cut, well-formed answers, nothing left behind."""

from __future__ import annotations

from typing import Any

import hyperframe.frame

from gpu_worker.grpc.native import heads
from gpu_worker.http2 import codes, headers
from gpu_worker.http2 import limits as http2_limits
from tests.support import http2_peer

NAME = "http2"
LIMITS = http2_limits.Limits(
    streams=4,
    stream_window_bytes=2**9,
    connection_window_bytes=2**16,
    stream_unsent_bytes=2**8,
    frame_bytes=2**14,
    header_list_bytes=2**10,
    header_fields=12,
    continuations=3,
    idle_frames=20,
    resets=6,
)
_VIEWS = heads.Views({})
_GREETING = codes.PREFACE + http2_peer.frame(codes.SETTINGS) + http2_peer.frame(codes.SETTINGS, codes.ACK)


class _Application(http2_peer.Recorder):
    """Reads heads as the gRPC front does."""

    def view(self, head: headers.Head) -> Any:
        _VIEWS.view(head).metadata()
        return head.path


def fuzz(data: bytes) -> None:
    """The first byte says how: greeted or not, taking and answering or not, and how long the pieces are."""
    how, data = (data[0], data[1:]) if data else (0, b"")
    if how & 1:
        data = _GREETING + data
    whole = _outcome(how, data, len(data) or 1)
    cut = _outcome(how, data, (how >> 3) + 1)
    assert whole == cut, f"{whole}\n{cut}"


def _outcome(how: int, data: bytes, size: int) -> Any:
    application = _Application(takes=not how & 2, answers=not how & 4)
    peer = http2_peer.Peer(LIMITS, application, greets=False)
    said = b""
    for at in range(0, len(data), size):
        peer.send(data[at : at + size])
        said += peer.raw()
    said += peer.raw()
    frames = _parsed(said)
    ended = peer.session.ended
    peer.session.lose()
    assert not peer.session.streams
    assert peer.session.sender.unsent_bytes == 0
    fault = next((frame.error_code for frame in frames if isinstance(frame, hyperframe.frame.GoAwayFrame)), None)
    seen = [
        (stream, application.heads[stream].fields, handler.body, handler.over)
        for stream, handler in application.handlers.items()
    ]
    return seen, ended, fault


def _parsed(said: bytes) -> list[hyperframe.frame.Frame]:
    """What was said, as another implementation reads it."""
    found = []
    while said:
        frame, length = hyperframe.frame.Frame.parse_frame_header(memoryview(said[:9]), strict=True)
        assert len(said) >= 9 + length
        frame.parse_body(memoryview(said[9 : 9 + length]))
        found.append(frame)
        said = said[9 + length :]
    return found


def seeds() -> list[bytes]:
    frame, request = http2_peer.frame, http2_peer.request
    ping = frame(codes.PING, payload=b"12345678")
    padded = frame(codes.DATA, codes.PADDED | codes.END_STREAM, 1, b"\x02ab\0\0")
    split = frame(codes.HEADERS, 0, 1, b"\x82\x86") + frame(codes.CONTINUATION, codes.END_HEADERS, 1, b"\x84\x41\x01h")
    plain = [
        request(1, b"abc"),
        http2_peer.opening(1) + padded,
        http2_peer.opening(1) + frame(codes.RST_STREAM, stream=1, payload=http2_peer.long(8)),
        http2_peer.settings((4, 0), (5, 2**15)) + request(1, b"x" * 20),
        ping + frame(codes.GOAWAY, payload=http2_peer.long(0) * 2),
        frame(codes.WINDOW_UPDATE, payload=http2_peer.long(10)) + frame(codes.PRIORITY, stream=1, payload=bytes(5)),
        split + frame(codes.DATA, codes.END_STREAM, 1),
        http2_peer.opening(1, more=((b"grpc-timeout", b"10S"), (b"a-bin", b"AAA="))),
        http2_peer.opening(1, more=((b"content-length", b"3"),)) + frame(codes.DATA, codes.END_STREAM, 1, b"abc"),
        b"".join(request(stream, b"y") for stream in (1, 3, 5, 7, 9)),
    ]
    return [bytes([how]) + data for data in plain for how in (1, 0x2F)] + [b"\0" + _GREETING]
