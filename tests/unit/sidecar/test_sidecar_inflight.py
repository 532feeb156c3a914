from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from sidecar import inflight

INFER = b"POST /v2/models/digits/versions/1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
HEALTH = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
SIMPLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

cuts = st.lists(st.integers(1, 7), min_size=1, max_size=40)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    found, at = [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return [piece for piece in (*found, data[at:]) if piece]


def frame(kind: int, stream: int, *, flags: int = 0, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


@hypothesis.given(st.lists(st.tuples(st.sampled_from([INFER, HEALTH]), st.sampled_from([SIMPLE, CHUNKED]))), cuts)
def test_http_calls_count_from_first_to_last_byte_however_cut(
    calls: list[tuple[bytes, bytes]], sizes: list[int]
) -> None:
    seen = inflight.Http1()
    for request, answer in calls:
        for piece in pieces(request, sizes):
            seen.sent(piece)
            assert seen.busy()
        assert list(seen.uses()) == (["digits"] if request is INFER else [])
        for piece in pieces(CONTINUE + answer, sizes):
            assert seen.busy()
            seen.answered(piece)
        assert not seen.busy()
        assert list(seen.uses()) == []


def test_pipelined_requests_all_count() -> None:
    seen = inflight.Http1()
    seen.sent(INFER + INFER)
    seen.answered(SIMPLE)

    assert list(seen.uses()) == ["digits"]


def test_a_request_whose_path_is_not_known_yet_may_be_anything() -> None:
    seen = inflight.Http1()
    seen.sent(b"POST /v2/mod")

    assert list(seen.uses()) == [None]


@pytest.mark.parametrize("strange", [b"\x16\x03\x01 hello", b"HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_what_is_not_understood_counts_while_the_client_spoke_last(strange: bytes) -> None:
    seen = inflight.Http1()
    seen.sent(strange)
    assert list(seen.uses()) == [None]

    seen.answered(b"whatever")

    assert list(seen.uses()) == []
    assert not seen.busy()


@hypothesis.given(st.binary(max_size=60), st.binary(max_size=60), cuts)
def test_no_bytes_break_an_observer(sent: bytes, answered: bytes, sizes: list[int]) -> None:
    for seen in (inflight.Http1(), inflight.Http2(), inflight.Plain(), inflight.Opaque()):
        for piece in pieces(sent, sizes):
            seen.sent(piece)
        for piece in pieces(answered, sizes):
            seen.answered(piece)
        seen.busy()
        list(seen.uses())
        seen.farewell()


@hypothesis.given(cuts)
def test_grpc_calls_count_until_their_stream_ends_however_cut(sizes: list[int]) -> None:
    seen = inflight.Http2()
    opened = PREFACE + frame(4, 0) + frame(1, 1, body=b"headers") + frame(0, 1, flags=1, body=b"x" * 50)
    for piece in pieces(opened + frame(1, 3, flags=1), sizes):
        seen.sent(piece)
    assert list(seen.uses()) == [None, None]

    for piece in pieces(frame(4, 0) + frame(1, 1) + frame(0, 1, body=b"y" * 20) + frame(1, 1, flags=1), sizes):
        seen.answered(piece)
    # What a client says between calls is no call.
    for piece in pieces(frame(4, 0, flags=1) + frame(8, 0, body=b"1234") + frame(6, 0, body=b"12345678"), sizes):
        seen.sent(piece)
    assert list(seen.uses()) == [None]

    seen.sent(frame(3, 3, body=b"1234"))
    assert not seen.busy()


def test_goodbye_is_said_between_frames_only() -> None:
    seen = inflight.Http2()
    seen.sent(PREFACE + frame(1, 1))
    seen.answered(frame(0, 1, body=b"1234")[:11])
    assert seen.farewell() == b""

    seen.answered(b"34")

    assert seen.farewell()[3] == 7


def test_trailers_of_a_request_open_nothing() -> None:
    seen = inflight.Http2()
    seen.sent(PREFACE + frame(1, 1))
    seen.answered(frame(1, 1, flags=1))
    seen.sent(frame(1, 1, flags=1))

    assert not seen.busy()
