"""One HTTP connection, driven without a socket: any bytes, any cuts, any order of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.http import limits as http_limits
from tests.support.http_bench import Answers, Bench


def run(test: Callable[[], None]) -> None:
    async def within_a_loop() -> None:
        test()

    asyncio.run(within_a_loop())


def post(body: bytes, target: bytes = b"/echo", headers: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n%b" % (target, headers, len(body), body)


def chunked(body: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, body[index : index + 1]) for index in range(len(body)))
    return b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


MANGLED = st.lists(
    st.sampled_from([post(b"abc"), chunked(b"xy"), b"GET / HTTP/1.1\r\n\r\n", b"\r\n", b"Expect: 100-continue", b"\0"])
    | st.binary(max_size=20),
    max_size=6,
).map(b"".join)


@given(data=st.binary(max_size=300) | MANGLED, cuts=st.lists(st.integers(0, 300), max_size=6), at_once=st.booleans())
def test_no_bytes_raise_hang_or_leak(data: bytes, cuts: list[int], *, at_once: bool) -> None:
    def test() -> None:
        bench = Bench()
        bench.app.at_once = at_once
        bench.feed(data, cuts)
        stays = bench.connection.eof_received()
        for request in bench.app.asked:  # grows while it is walked
            bench.app.reply(request)
        assert bench.wire.ended or not stays
        assert bench.intake._held_bytes == 0
        bench.connection.connection_lost(None)
        assert all(status in (200, 400) for status in Answers(bytes(bench.wire.written)).statuses)

    run(test)


@given(
    st.lists(st.tuples(st.binary(max_size=30), st.sampled_from([post, chunked])), min_size=1, max_size=8),
    st.lists(st.integers(0, 1500), max_size=10),
    st.data(),
)
def test_answers_keep_the_order_of_requests_whatever_the_cuts_and_the_order_of_work(
    requests: list[tuple[bytes, Callable[[bytes], bytes]]], cuts: list[int], data: st.DataObject
) -> None:
    def test() -> None:
        bench = Bench()
        bench.feed(b"".join(make(body) for body, make in requests), cuts)
        for request in data.draw(st.permutations(bench.app.asked)):
            bench.app.reply(request)
        assert Answers(bytes(bench.wire.written)).bodies == [body for body, _ in requests]
        assert bench.intake._held_bytes == 0
        assert not bench.wire.ended

    run(test)


def test_a_request_whose_order_matters_runs_alone() -> None:
    def test() -> None:
        bench = Bench()
        bench.feed(post(b"1") + post(b"2", b"/alone") + post(b"3") + post(b"4"))
        assert [request.body for request in bench.app.asked] == [b"1"]
        bench.app.reply(bench.app.asked[0])
        assert [request.body for request in bench.app.asked] == [b"1", b"2"]
        bench.app.reply(bench.app.asked[1])
        assert [request.body for request in bench.app.asked] == [b"1", b"2", b"3", b"4"]

    run(test)


def test_reading_stops_while_much_is_in_flight_and_goes_on_after() -> None:
    def test() -> None:
        bench = Bench(http_limits.Limits(pipelined=4))
        bench.feed(b"".join(post(b"%d" % index) for index in range(10)))
        assert len(bench.app.asked) == 4
        assert not bench.wire.reading
        for index in range(10):
            bench.app.reply(bench.app.asked[index])
        assert bench.wire.reading
        assert Answers(bytes(bench.wire.written)).bodies == [b"%d" % index for index in range(10)]

    run(test)


def test_nothing_is_started_or_written_while_the_client_does_not_read() -> None:
    def test() -> None:
        bench = Bench()
        bench.feed(post(b"1"))
        bench.connection.pause_writing()
        bench.app.reply(bench.app.asked[0])
        bench.feed(post(b"2"))
        assert not bench.wire.written
        assert len(bench.app.asked) == 1
        assert not bench.wire.reading
        bench.connection.resume_writing()
        bench.app.reply(bench.app.asked[1])
        assert Answers(bytes(bench.wire.written)).bodies == [b"1", b"2"]
        assert bench.wire.reading

    run(test)


def test_bodies_beyond_what_the_server_may_hold_are_refused_as_unavailable() -> None:
    def test() -> None:
        bench = Bench()
        bench.feed(post(bytes(9_000)) + post(bytes(9_000)))
        bench.app.reply(bench.app.asked[0])
        answers = Answers(bytes(bench.wire.written))
        assert answers.statuses == [200, 503]
        assert bench.wire.ended
        assert bench.intake._held_bytes == 0

    run(test)


def test_a_draining_server_ends_each_connection_with_its_last_answer() -> None:
    def test() -> None:
        bench = Bench()
        bench.feed(post(b"1") + post(b"2"))
        bench.server.drain()
        bench.app.reply(bench.app.asked[1])
        bench.app.reply(bench.app.asked[0])
        assert Answers(bytes(bench.wire.written)).bodies == [b"1", b"2"]
        assert bytes(bench.wire.written).count(b"Connection: close") == 1
        assert bench.wire.ended

    run(test)


def test_a_late_answer_to_a_client_that_has_gone_is_dropped() -> None:
    def test() -> None:
        bench = Bench()
        bench.feed(post(b"1"))
        bench.connection.connection_lost(None)
        bench.app.reply(bench.app.asked[0])
        assert not bench.wire.written
        assert bench.intake._held_bytes == 0

    run(test)


def test_the_framing_of_chunks_is_bounded() -> None:
    def test() -> None:
        bench = Bench()
        bench.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        for _ in range(40):
            bench.connection.data_received(b"x" * 2**16)
        assert Answers(bytes(bench.wire.written)).statuses == [400]

    run(test)


def test_a_head_is_remembered_only_with_the_message_that_it_began() -> None:
    """What an older client sends first must not lend its length to the message behind it."""

    def old(body: bytes) -> bytes:
        head = b"POST /echo HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(body)
        return head + body

    def new(body: bytes) -> bytes:
        return old(body).replace(b"HTTP/1.0", b"HTTP/1.1")

    def test() -> None:
        bench = Bench()
        smuggled = post(b"")
        bench.feed(old(b"x" * len(smuggled)) + new(b""))
        bench.feed(old(smuggled))
        for request in bench.app.asked:  # grows while it is walked
            bench.app.reply(request)
        assert [request.body for request in bench.app.asked] == [b"x" * len(smuggled), b"", smuggled]

    run(test)
