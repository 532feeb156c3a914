"""What a client may send when, on raw bytes: RFC 9113's rules for frames, streams and requests."""

from __future__ import annotations

import sys
from typing import Any

import hpack as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.http2 import codes, frames, headers, hpack, session
from gpu_worker.http2 import limits as http2_limits
from gpu_worker.http2.codes import Code
from tests.support import http2_peer
from tests.support.http2_peer import HEAD, REQUEST, TRAILERS, Peer, Recorder, frame, long, opening, request, settings

END = codes.END_HEADERS | codes.END_STREAM
BLOCK = hpack.encode(REQUEST)


def test_a_request_is_answered_and_its_stream_ends() -> None:
    peer = Peer()
    peer.send(request(1, b"hello"))
    said = peer.said()
    assert [(each.kind, each.stream) for each in said] == [(codes.HEADERS, 1), (codes.DATA, 1), (codes.HEADERS, 1)]
    assert said[1].payload == b"hello"
    assert said[2].flags == END
    assert peer.session.streams == {}


def test_the_first_words_are_settings_and_a_window() -> None:
    peer = Peer(greets=False)
    first, second = peer.said()
    assert frames.read_settings(first.payload) == list(http2_limits.Limits().settings().items())
    assert (second.kind, http2_peer.number(second.payload)) == (codes.WINDOW_UPDATE, 2**25 - 65535)


def test_bytes_may_come_one_at_a_time() -> None:
    peer = Peer(greets=False)
    data = codes.PREFACE + settings() + opening(1) + frame(0, 8, 1, b"\2abc\0\0") + frame(0, 1, 1, b"d")
    peer.send(*(data[at : at + 1] for at in range(len(data))))
    assert peer.application.handlers[1].body == b"abcd"
    assert peer.application.handlers[1].over


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
        codes.PREFACE + frame(codes.PING, 0, 0, bytes(8)),
        codes.PREFACE + frame(codes.SETTINGS, codes.ACK),
        codes.PREFACE + opening(1),
        codes.PREFACE + opening(1)[:12],
        codes.PREFACE + request(1),
        codes.PREFACE + frame(codes.DATA, 0, 1, b"x"),
        codes.PREFACE + frame(0xEE),
    ],
)
def test_anything_but_the_preface_and_settings_first_ends_the_connection(start: bytes) -> None:
    peer = Peer(greets=False)
    peer.send(start)
    assert peer.error()[0] is Code.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (frame(codes.SETTINGS, 0, 1), Code.PROTOCOL_ERROR, "SETTINGS on a stream"),
        (frame(codes.SETTINGS, 0, 0, bytes(5)), Code.FRAME_SIZE_ERROR, "multiple of 6"),
        (frame(codes.SETTINGS, codes.ACK, 0, bytes(6)), Code.FRAME_SIZE_ERROR, "acknowledgement"),
        (settings((2, 2)), Code.PROTOCOL_ERROR, "ENABLE_PUSH"),
        (settings((4, 2**31)), Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE"),
        (settings((5, 2**14 - 1)), Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE"),
        (settings((5, 2**24)), Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE"),
        (settings(*[(9, 9)] * 33), Code.ENHANCE_YOUR_CALM, "too many settings"),
        (frame(codes.PING, 0, 1, bytes(8)), Code.PROTOCOL_ERROR, "PING on a stream"),
        (frame(codes.PING, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR, "8 bytes"),
        (frame(codes.GOAWAY, 0, 1, bytes(8)), Code.PROTOCOL_ERROR, "GOAWAY on a stream"),
        (frame(codes.GOAWAY, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR, "at least 8"),
        (frame(codes.PUSH_PROMISE, 4, 1, bytes(4)), Code.PROTOCOL_ERROR, "PUSH_PROMISE"),
        (frame(codes.PRIORITY, 0, 0, bytes(5)), Code.PROTOCOL_ERROR, "PRIORITY on stream 0"),
        (frame(codes.RST_STREAM, 0, 0, long(8)), Code.PROTOCOL_ERROR, "never opened"),
        (frame(codes.RST_STREAM, 0, 1, long(8)), Code.PROTOCOL_ERROR, "never opened"),
        (frame(codes.RST_STREAM, 0, 1, bytes(3)), Code.FRAME_SIZE_ERROR, "4 bytes"),
        (frame(codes.WINDOW_UPDATE, 0, 0, long(0)), Code.PROTOCOL_ERROR, "by 0"),
        (frame(codes.WINDOW_UPDATE, 0, 0, bytes(5)), Code.FRAME_SIZE_ERROR, "4 bytes"),
        (frame(codes.WINDOW_UPDATE, 0, 0, long(2**31 - 1)), Code.FLOW_CONTROL_ERROR, "above 2^31-1"),
        (frame(codes.WINDOW_UPDATE, 0, 1, long(1)), Code.PROTOCOL_ERROR, "never opened"),
        (frame(codes.DATA, 0, 0, b"x"), Code.PROTOCOL_ERROR, "stream 0"),
        (frame(codes.DATA, 0, 1, b"x"), Code.PROTOCOL_ERROR, "never opened"),
        (frame(codes.DATA, 0, 2, b"x"), Code.PROTOCOL_ERROR, "never opened"),
        (frame(codes.CONTINUATION, 4, 1, b"x"), Code.PROTOCOL_ERROR, "without HEADERS"),
        (opening(0), Code.PROTOCOL_ERROR, "even number"),
        (opening(2), Code.PROTOCOL_ERROR, "even number"),
        (frame(codes.HEADERS, 0, 2, BLOCK), Code.PROTOCOL_ERROR, "even number"),
        (opening(1, 0) + frame(codes.PING, 0, 0, bytes(8)), Code.PROTOCOL_ERROR, "between HEADERS and"),
        (opening(1, 0) + frame(codes.DATA, 0, 1, b"x"), Code.PROTOCOL_ERROR, "between HEADERS and"),
        (opening(1, 0) + opening(1), Code.PROTOCOL_ERROR, "between HEADERS and"),
        (opening(1, 0) + frame(codes.CONTINUATION, 4, 3, b"x"), Code.PROTOCOL_ERROR, "between HEADERS and"),
        (opening(1, 0) + frame(0xEE), Code.PROTOCOL_ERROR, "between HEADERS and"),
        (frame(codes.HEADERS, 4, 1, b"\x80"), Code.COMPRESSION_ERROR, "index 0"),
        (frame(codes.HEADERS, 4 | codes.PADDED, 1, b""), Code.FRAME_SIZE_ERROR, "pad length"),
        (frame(codes.HEADERS, 4 | codes.PADDED, 1, b"\x05abcd"), Code.PROTOCOL_ERROR, "more padding"),
        (frame(codes.HEADERS, 4 | codes.PRIORITIZED, 1, bytes(4)), Code.FRAME_SIZE_ERROR, "priority"),
        (frame(codes.HEADERS, 4 | codes.PRIORITIZED, 1, long(1) + b"\0" + BLOCK), Code.PROTOCOL_ERROR, "itself"),
        (opening(5) + opening(3), Code.PROTOCOL_ERROR, "below the last one"),
        (request(1) + opening(1), Code.STREAM_CLOSED, "closed"),
        (opening(1) + frame(codes.RST_STREAM, 0, 1, long(8)) + opening(1), Code.STREAM_CLOSED, "closed"),
        (opening(1) + frame(codes.DATA, codes.PADDED, 1, b"\x01"), Code.PROTOCOL_ERROR, "more padding"),
        (opening(1) + frame(codes.DATA, codes.PADDED, 1, b""), Code.FRAME_SIZE_ERROR, "pad length"),
        (b"\x04\0\x01" + bytes(6), Code.FRAME_SIZE_ERROR, "larger than MAX_FRAME_SIZE"),
    ],
)
def test_what_breaks_the_connection(data: bytes, code: Code, words: str) -> None:
    peer = Peer()
    peer.send(data)
    found, told = peer.error()
    assert found is code
    assert words in told


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (opening(1, END) + frame(codes.DATA, 0, 1, b"x"), Code.STREAM_CLOSED),
        (opening(1, END) + opening(1, END), Code.STREAM_CLOSED),
        (opening(1) + opening(1), Code.PROTOCOL_ERROR),  # trailers that do not end
        (opening(1) + opening(1, END), Code.PROTOCOL_ERROR),  # pseudo-headers in trailers
        (opening(1) + frame(codes.WINDOW_UPDATE, 0, 1, long(0)), Code.PROTOCOL_ERROR),
        (opening(1) + frame(codes.WINDOW_UPDATE, 0, 1, long(2**31 - 1)), Code.FLOW_CONTROL_ERROR),
        (frame(codes.PRIORITY, 0, 1, bytes(4)), Code.FRAME_SIZE_ERROR),
        (frame(codes.PRIORITY, 0, 1, long(1) + b"\0"), Code.PROTOCOL_ERROR),
        (opening(1, more=((b"content-length", b"3"),)) + frame(0, 1, 1, b"ab"), Code.PROTOCOL_ERROR),
        (opening(1, more=((b"content-length", b"1"),)) + frame(0, 0, 1, b"ab"), Code.PROTOCOL_ERROR),
        (opening(1, END, more=((b"content-length", b"1"),)), Code.PROTOCOL_ERROR),
        (
            opening(1, more=((b"content-length", b"1"),)) + frame(1, END, 1, hpack.encode(((b"a", b"b"),))),
            Code.PROTOCOL_ERROR,
        ),
        (opening(1, fields=REQUEST[:2]), Code.PROTOCOL_ERROR),  # no :path
        (opening(1, fields=REQUEST[1:]), Code.PROTOCOL_ERROR),  # no :method
        (opening(1, fields=(*REQUEST[:2], (b":path", b""))), Code.PROTOCOL_ERROR),
        (opening(1, more=((b":method", b"GET"),)), Code.PROTOCOL_ERROR),
        (opening(1, more=((b":status", b"200"),)), Code.PROTOCOL_ERROR),
        (opening(1, more=((b"a", b"b"), (b":protocol", b"x"))), Code.PROTOCOL_ERROR),
        (opening(1, fields=((b"a", b"b"), *REQUEST)), Code.PROTOCOL_ERROR),
        (opening(1, fields=((b":method", b"CONNECT"), *REQUEST[1:])), Code.PROTOCOL_ERROR),
        *((opening(1, more=((name, b"x"),)), Code.PROTOCOL_ERROR) for name in (
            b"", b"A", b"a b", b"a:", b"\x80", b"connection", b"keep-alive", b"proxy-connection",
            b"transfer-encoding", b"upgrade", b"te", b"content-length", b"host",
        )),
        *((opening(1, more=((b"a", value),)), Code.PROTOCOL_ERROR) for value in (
            b" x", b"x ", b"\tx", b"a\nb", b"a\rb", b"a\0b",
        )),
        (opening(1, more=((b"content-length", b"1"), (b"content-length", b"2"))), Code.PROTOCOL_ERROR),
        (frame(codes.HEADERS, END, 1, BLOCK + b"\xb9"), Code.PROTOCOL_ERROR),  # transfer-encoding of the static table
        (frame(codes.HEADERS, END, 1, BLOCK + b"\x88"), Code.PROTOCOL_ERROR),  # :status 200 of the static table
    ],
)  # fmt: skip
def test_what_breaks_one_stream_leaves_the_others(data: bytes, code: Code) -> None:
    peer = Peer(application=Recorder(answers=False))
    peer.send(data)
    assert peer.resets() == [(1, code)]
    peer.application.answers = True
    peer.send(request(3, b"on"))
    assert [each.payload for each in peer.said() if each.kind == codes.DATA] == [b"on"]


@pytest.mark.parametrize(
    "fields",
    [
        (*REQUEST, (b"te", b"trailers"), (b"content-length", b"2"), (b"content-length", b"2"), (b"host", b"here")),
        (*REQUEST, (b"a", b""), (b"a", b"x y"), (b"a", b"\xff")),
        ((b":method", b"CONNECT"), (b":authority", b"here:1")),
        REQUEST[:3],
    ],
)
def test_what_is_allowed_is_let_through(fields: Any) -> None:
    peer = Peer()
    peer.send(opening(1, fields=fields) + frame(codes.DATA, codes.END_STREAM, 1, b"ab"))
    assert peer.application.heads[1].fields == fields
    assert [each.payload for each in peer.said() if each.kind == codes.DATA] == [b"ab"]


def test_a_malformed_request_stays_malformed_when_it_comes_from_the_table() -> None:
    peer = Peer()
    bad = hpack.encode(REQUEST) + b"\x40\x01A\x01x"
    again = hpack.encode(REQUEST) + b"\xbe"
    for stream, block in ((1, bad), (3, again), (5, again)):
        peer.send(frame(codes.HEADERS, END, stream, block))
        assert peer.resets() == [(stream, Code.PROTOCOL_ERROR)]


def test_trailers_end_a_request_and_requests_may_have_no_body() -> None:
    peer = Peer()
    peer.send(opening(1) + frame(codes.DATA, 0, 1, b"x"))
    peer.send(frame(codes.HEADERS, END, 1, hpack.encode(((b"checksum", b"1"),))))
    assert peer.application.handlers[1].over
    peer.send(opening(3, END))
    assert peer.application.handlers[3].over


def test_headers_may_come_in_pieces_with_padding_and_priority() -> None:
    peer = Peer()
    first = b"\x03" + long(0) + b"\x07" + BLOCK[:5] + bytes(3)
    peer.send(frame(codes.HEADERS, codes.PADDED | codes.PRIORITIZED | codes.END_STREAM, 1, first))
    peer.send(frame(codes.CONTINUATION, 0, 1, BLOCK[5:9]), frame(codes.CONTINUATION, codes.END_HEADERS, 1, BLOCK[9:]))
    assert peer.application.heads[1].fields == REQUEST
    assert peer.application.handlers[1].over


def test_padding_is_no_content_and_counts_for_the_windows() -> None:
    peer = Peer(application=Recorder(takes=False))
    peer.send(opening(1), frame(codes.DATA, codes.PADDED, 1, b"\x05abc" + bytes(5)))
    handler = peer.application.handlers[1]
    assert handler.body == b"abc"
    assert handler.stream.left == 2**21 - 9
    peer.send(frame(codes.DATA, codes.PADDED | codes.END_STREAM, 1, b"\x02\0\0"))
    assert handler.over


def test_unknown_frames_and_settings_and_late_frames_are_ignored() -> None:
    peer = Peer()
    peer.send(frame(0xEE, 0xFF, 7, b"x" * 99), settings((0x99, 7)), request(1))
    peer.said()
    peer.send(frame(codes.WINDOW_UPDATE, 0, 1, long(5)), frame(codes.RST_STREAM, 0, 1, long(8)))
    peer.send(frame(codes.PRIORITY, 0, 1, bytes(5)), frame(codes.PRIORITY, 0, 99, bytes(5)))
    assert peer.said() == []
    assert not peer.session.ended


def test_data_after_the_end_of_a_closed_stream_resets_it_once_more() -> None:
    peer = Peer()
    peer.send(request(1))
    peer.said()
    peer.send(frame(codes.DATA, 0, 1, b"late"))
    assert peer.resets() == [(1, Code.STREAM_CLOSED)]


def test_what_comes_before_a_client_knows_of_a_reset_is_thrown_away() -> None:
    peer = Peer(application=Recorder(answers=False))
    peer.send(opening(1))
    peer.application.handlers[1].stream.reset(Code.CANCEL)
    peer.said()
    peer.send(frame(codes.DATA, 0, 1, b"late"), frame(codes.HEADERS, END, 1, BLOCK))
    assert peer.said() == []
    assert peer.session._inflow.left == 2**25 - 4


def test_an_answer_before_the_end_of_its_request_stops_the_request() -> None:
    peer = Peer(application=Recorder(answers=False))
    peer.send(opening(1), frame(codes.DATA, 0, 1, b"x"))
    stream = peer.application.handlers[1].stream
    stream.respond(http2_peer.HEAD, (), 0, http2_peer.TRAILERS)
    said = peer.said()
    assert [each.kind for each in said] == [codes.HEADERS, codes.DATA, codes.HEADERS, codes.RST_STREAM]
    assert http2_peer.number(said[-1].payload) == Code.NO_ERROR
    stream.finish(http2_peer.TRAILERS)
    stream.reset(Code.CANCEL)
    stream.send(None, [b"x"], 1)
    assert peer.said() == []


def test_settings_and_pings_are_answered() -> None:
    peer = Peer()
    peer.send(settings((3, 5)), frame(codes.PING, 0, 0, b"12345678"))
    assert [(each.kind, each.flags, each.payload) for each in peer.said()] == [
        (codes.SETTINGS, codes.ACK, b""),
        (codes.PING, codes.ACK, b"12345678"),
    ]


def test_a_connection_ends_in_two_steps_and_serves_what_came_between() -> None:
    peer = Peer(application=Recorder(answers=False))
    peer.send(opening(1, END))
    peer.session.go_away()
    first, ping = peer.said()
    assert first.payload == long(2**31 - 1) + long(0)
    peer.send(opening(3, END), frame(codes.PING, codes.ACK, 0, ping.payload), opening(5, END))
    last, refused = peer.said()
    assert last.payload == long(3) + long(0)
    assert (refused.kind, refused.stream, refused.payload) == (codes.RST_STREAM, 5, long(Code.REFUSED_STREAM))
    for stream in (1, 3):
        assert not peer.session.ended
        peer.application.handlers[stream].stream.respond(http2_peer.HEAD, (), 0, http2_peer.TRAILERS)
    assert peer.session.ended
    assert [each.stream for each in peer.said() if each.flags & codes.END_STREAM] == [1, 3]


def test_a_client_that_says_goodbye_gets_its_answers() -> None:
    peer = Peer(application=Recorder(answers=False))
    peer.send(opening(1, END), frame(codes.GOAWAY, 0, 0, long(0) + long(0)))
    assert peer.session.leaving is session.Leaving.FINAL
    assert not peer.session.ended
    peer.application.handlers[1].stream.respond(http2_peer.HEAD, (), 0, http2_peer.TRAILERS)
    assert peer.session.ended


def test_when_a_connection_ends_all_its_streams_hear_of_it_once() -> None:
    peer = Peer(application=Recorder(answers=False))
    peer.send(opening(1, END), opening(3), frame(codes.RST_STREAM, 0, 3, long(5)))
    assert peer.application.handlers[3].reset_code == 5
    peer.send(frame(codes.PING, 0, 1, bytes(8)))
    assert peer.application.handlers[1].reset_code == Code.CANCEL
    peer.raw()
    peer.send(request(5))
    assert peer.raw() == b""


def test_an_application_that_raises_ends_the_connection_not_the_process() -> None:
    class Broken(Recorder):
        def opened(self, stream: Any, head: Any, ended: bool) -> Any:  # noqa: FBT001
            raise RuntimeError("broken")

    peer = Peer(application=Broken())
    peer.send(request(1))
    assert peer.error()[0] is Code.INTERNAL_ERROR


_MORE = st.lists(
    st.tuples(
        st.sampled_from(["x-request-id", "grpc-timeout", "content-length", "host", "a", "te", "content-type"]),
        st.sampled_from(["0", "trailers", "here", "there", "1S", "application/grpc"]) | st.text("0123abc", max_size=9),
    ),
    max_size=3,
)


@given(st.lists(st.tuples(st.booleans(), _MORE), min_size=5, max_size=40), st.sampled_from([0, 100, 200, 400, 4096]))
def test_requests_that_begin_alike_are_each_read_as_if_they_were_the_first(
    asked: list[tuple[bool, list[tuple[str, str]]]], table_bytes: int
) -> None:
    """Whatever the client's encoder indexes, and though its table forgets."""
    peer = Peer(http2_limits.Limits(resets=1000), Recorder())
    encoder = oracle.Encoder()
    encoder.header_table_size = table_bytes
    common = [(":method", "POST"), (":scheme", "http"), (":path", "/s/m"), (":authority", "here"), ("user-agent", "me")]
    for index, (turned, more) in enumerate(asked):
        stream = 2 * index + 1
        given_fields = [*(common[:-1] if turned else common), *more]
        fields = tuple((name.encode(), value.encode()) for name, value in given_fields)
        peer.send(frame(codes.HEADERS, codes.END_HEADERS, stream, encoder.encode(given_fields)))
        try:
            assert all(headers.is_allowed(*field) for field in fields)
            expected = headers.request(fields)
        except (AssertionError, codes.StreamFault):
            assert peer.resets() == [(stream, Code.PROTOCOL_ERROR)]
            continue
        found = peer.application.heads[stream]
        assert (found.fields, found.values, found.content_length) == (fields, dict(fields), expected.content_length)
        assert (found.method, found.scheme, found.path, found.authority) == (b"POST", b"http", b"/s/m", b"here")
        assert found.view == b"/s/m"


def test_what_requests_begin_with_is_read_once() -> None:
    peer = Peer(http2_limits.Limits(), Recorder())
    encoder = oracle.Encoder()
    common = [(":method", "POST"), (":scheme", "http"), (":path", "/s/m"), (":authority", "here"), ("user-agent", "me")]
    shared = 0
    for stream in range(1, 1001, 2):
        value = f"{stream * 7919:036}"
        peer.send(frame(codes.HEADERS, codes.END_HEADERS, stream, encoder.encode([*common, ("x-request-id", value)])))
        shared += peer.session._decoder.shared == len(common)
        peer.application.handlers[stream].stream.reset(Code.CANCEL)
    assert shared > 400


def test_an_answer_in_many_frames_costs_nothing_for_each_but_its_header() -> None:
    """Clients take 16 KiB in a frame: the frames share the tensor's memory, and no function runs for each."""
    peer = Peer(application=Recorder(answers=False))
    peer.send(settings((4, codes.MAX_WINDOW)), frame(codes.WINDOW_UPDATE, 0, 0, long(2**30)), opening(1))
    peer.said()
    tensor = bytes(range(256)) * 2**12
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    peer.application.handlers[1].stream.send(HEAD, [b"head", tensor], len(tensor) + 4)
    pieces: list[Any] = []
    while out := peer.session.sender.take():
        pieces += out
        peer.session.sender.pump()
    sys.setprofile(None)
    assert calls < 120
    assert sum(piece.obj is tensor for piece in pieces if isinstance(piece, memoryview)) == 65
    said = http2_peer.parsed(b"".join(pieces))[1:]
    assert [len(each.payload) for each in said] == [2**14] * 64 + [4]
    assert b"".join(each.payload for each in said) == b"head" + tensor


@given(st.lists(st.integers(0, 90_000), max_size=4), st.integers(16384, 40_000), st.integers(1, 200_000))
def test_an_answer_is_the_same_in_whatever_pieces_frames_and_windows(
    sizes: list[int], frame_bytes: int, window: int
) -> None:
    peer = Peer(application=Recorder(answers=False))
    peer.send(settings((4, window), (5, frame_bytes)), opening(1, END))
    parts = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    peer.application.handlers[1].stream.respond(HEAD, parts, sum(sizes), TRAILERS)
    said = peer.said()
    while said[-1].kind != codes.HEADERS or not said[-1].flags & codes.END_STREAM:
        peer.send(frame(codes.WINDOW_UPDATE, 0, 0, long(70_001)), frame(codes.WINDOW_UPDATE, 0, 1, long(60_001)))
        said += peer.said()
    data = [each.payload for each in said if each.kind == codes.DATA]
    assert b"".join(data) == b"".join(parts)
    assert all(len(each) <= frame_bytes for each in data)
