"""Every bound of a connection, reached on raw bytes; time passes only where a test says so."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest

from gpu_worker.http2 import codes, hpack, session
from gpu_worker.http2 import limits as http2_limits
from gpu_worker.http2.codes import Code
from tests.support import http2_peer
from tests.support.http2_peer import HEAD, REQUEST, TRAILERS, Peer, Recorder, frame, long, opening, request, settings

END = codes.END_HEADERS | codes.END_STREAM
Limits = http2_limits.Limits
PING = frame(codes.PING, 0, 0, bytes(8))


def quiet(limits: Limits | None = None, *, takes: bool = True) -> Peer:
    """A peer whose application leaves requests unanswered."""
    return Peer(limits, Recorder(answers=False, takes=takes))


def body(peer: Peer) -> bytes:
    return b"".join(each.payload for each in peer.said() if each.kind == codes.DATA)


# -- streams


def test_no_more_streams_are_open_than_the_limit_and_the_rest_may_try_again() -> None:
    peer = quiet(Limits(streams=2))
    peer.send(opening(1), opening(3), opening(5))
    assert peer.resets() == [(5, Code.REFUSED_STREAM)]
    assert set(peer.application.handlers) == {1, 3}
    peer.send(frame(codes.RST_STREAM, 0, 1, long(8)), opening(7))
    assert peer.resets() == []


def test_what_was_cancelled_and_still_works_counts_as_a_stream() -> None:
    """CVE-2023-44487 and CVE-2025-8671: a reset frees a stream, not what it set going."""
    peer = quiet(Limits(streams=1))
    peer.send(opening(1))
    stream = peer.application.handlers[1].stream
    stream.lingers()
    peer.send(frame(codes.RST_STREAM, 0, 1, long(8)), opening(3))
    assert peer.resets() == [(3, Code.REFUSED_STREAM)]
    stream.rested()
    peer.send(opening(5))
    assert peer.resets() == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stream: opening(stream) + frame(codes.RST_STREAM, 0, stream, long(8)),
        lambda stream: opening(stream) + frame(codes.WINDOW_UPDATE, 0, stream, long(0)),
        lambda stream: opening(stream) + frame(codes.WINDOW_UPDATE, 0, stream, long(2**31 - 1)),
        lambda stream: opening(stream, END) + frame(codes.DATA, 0, stream, b"x"),
        lambda stream: opening(stream) + frame(codes.PRIORITY, 0, stream, b""),
        lambda stream: opening(stream, fields=REQUEST[1:]),
        lambda stream: opening(stream, more=((b"a", b"x" * 20000),)),
        lambda stream: opening(stream, END) + frame(codes.RST_STREAM, 0, stream, long(0)),
    ],
)
def test_streams_cannot_be_opened_and_reset_without_end(spoil: Callable[[int], bytes]) -> None:
    peer = quiet(Limits(resets=10, resets_per_s=2))
    for stream in range(1, 21, 2):
        peer.send(spoil(stream))
    assert not peer.session.ended
    peer.clock.now_s += 1
    peer.send(spoil(21), spoil(23))
    assert not peer.session.ended
    peer.send(spoil(25))
    assert peer.error() == (Code.ENHANCE_YOUR_CALM, "too many streams were reset")


def test_streams_beyond_the_limit_cannot_be_opened_without_end_either() -> None:
    peer = quiet(Limits(streams=1, resets=3, resets_per_s=0))
    peer.send(*(opening(stream) for stream in range(1, 11, 2)))
    assert peer.error()[0] is Code.ENHANCE_YOUR_CALM


def test_a_client_that_cannot_know_the_limit_yet_is_not_blamed() -> None:
    peer = Peer(Limits(streams=1, resets=3, resets_per_s=0), Recorder(answers=False), greets=False)
    peer.send(codes.PREFACE + settings(), *(opening(stream) for stream in range(1, 101, 2)))
    assert not peer.session.ended


# -- headers


def test_large_and_many_headers_are_answered_with_431() -> None:
    peer = Peer()
    many = tuple((b"n%d" % index, b"") for index in range(129))
    for stream, more in ((1, ((b"a", b"x" * 16384),)), (3, many)):
        peer.send(opening(stream, END, more=more))
        (answer,) = peer.said()
        assert (answer.stream, answer.flags) == (stream, END)
        assert b"431" in answer.payload
    peer.send(request(5))
    assert len(peer.said()) == 3


def test_a_header_block_may_not_be_larger_than_the_limit() -> None:
    peer = quiet()
    peer.send(frame(codes.HEADERS, 0, 1, bytes(2**15)), frame(codes.CONTINUATION, 0, 1, b"x"))
    assert peer.error() == (Code.ENHANCE_YOUR_CALM, "a header block larger than what is taken")
    peer = quiet()
    peer.send(frame(codes.HEADERS, 4, 1, bytes(2**15 + 1))[:50])
    assert peer.error() == (Code.ENHANCE_YOUR_CALM, "a frame larger than what is kept of one")


@pytest.mark.parametrize("piece", [b"", b"\x82"])
def test_continuations_do_not_go_on_for_ever(piece: bytes) -> None:
    """CVE-2024-27316."""
    peer = quiet(Limits(continuations=3))
    peer.send(frame(codes.HEADERS, 0, 1, piece), *[frame(codes.CONTINUATION, 0, 1, piece)] * 4)
    assert peer.error() == (Code.ENHANCE_YOUR_CALM, "too many CONTINUATION frames")


def test_references_to_a_large_entry_do_not_add_up() -> None:
    peer = quiet()
    entry = b"\x40\x01a" + b"\x7f\xa1\x1e" + b"x" * 4000
    peer.send(frame(codes.HEADERS, END, 1, hpack.encode(REQUEST) + entry + b"\xbe" * 20000))
    (answer,) = peer.said()
    assert b"431" in answer.payload


# -- frames that carry nothing


@pytest.mark.parametrize(
    "useless",
    [
        frame(codes.PRIORITY, 0, 9, bytes(5)),
        frame(0xEE),
        settings(),
        frame(codes.SETTINGS, codes.ACK),
        frame(codes.PING, codes.ACK, 0, bytes(8)),
        frame(codes.WINDOW_UPDATE, 0, 0, long(1)),
        frame(codes.WINDOW_UPDATE, 0, 1, long(1)),
        frame(codes.DATA, 0, 1),
        frame(codes.DATA, codes.PADDED, 1, b"\0"),
        frame(codes.GOAWAY, 0, 0, bytes(8)),
    ],
)
def test_frames_that_carry_nothing_are_counted(useless: bytes) -> None:
    peer = quiet(Limits(idle_frames=20))
    peer.send(opening(1))
    peer.send(*[useless] * 20)
    assert not peer.session.ended
    peer.send(useless)
    code, words = peer.error()
    assert code is Code.ENHANCE_YOUR_CALM
    assert "carry nothing" in words


def test_late_data_and_headers_of_a_reset_stream_are_counted() -> None:
    many, few = [frame(codes.DATA, 0, 1, b"x")] * 64, [frame(codes.HEADERS, END, 1, hpack.encode(REQUEST))]
    for late in (many, few):
        peer = quiet(Limits(idle_frames=5))
        peer.send(opening(1))
        peer.application.handlers[1].stream.reset(Code.CANCEL)
        peer.send(*late * 5)
        assert not peer.session.ended
        peer.send(*late)
        assert peer.error()[0] is Code.ENHANCE_YOUR_CALM


def test_what_was_under_way_to_a_stream_that_ended_does_no_harm() -> None:
    """A client sends what the window allows in small frames before it hears of the end."""
    peer = quiet()
    peer.send(opening(1))
    peer.application.handlers[1].stream.reset(Code.CANCEL)
    peer.send(*[frame(codes.DATA, 0, 1, bytes(105))] * 1001)
    assert not peer.session.ended


def test_streams_that_are_not_taken_leave_the_others_room() -> None:
    peer = quiet(Limits(stream_window_bytes=30_000, connection_window_bytes=65535), takes=False)
    for stalled in (1, 3):
        peer.send(
            opening(stalled), frame(codes.DATA, 0, stalled, bytes(16_000)), frame(codes.DATA, 0, stalled, bytes(14_000))
        )
    peer.send(opening(5), frame(codes.DATA, 0, 5, bytes(5_000)))
    assert peer.said() == []
    peer.application.handlers[5].stream.taken(5_000)
    (update,) = peer.said()
    assert (update.kind, update.stream, update.payload) == (codes.WINDOW_UPDATE, 0, (5_000).to_bytes(4))


def test_bytes_that_are_kept_cost_the_other_streams_nothing_up_to_a_bound() -> None:
    limits = Limits(stream_window_bytes=60_000, connection_window_bytes=65535, unread_bytes=100_000, frame_bytes=60_000)
    peer = quiet(limits, takes=False)
    kept = {}
    for stream in (1, 3):
        peer.send(opening(stream), frame(codes.DATA, 0, stream, bytes(60_000)))
        kept[stream] = peer.application.handlers[stream].stream.keep(60_000)
    assert kept == {1: 60_000, 3: 40_000}
    updates = [(each.stream, http2_peer.number(each.payload)) for each in peer.said()]
    assert updates == [(0, 60_000), (0, 40_000)]
    peer.send(frame(codes.DATA, 0, 1, b"x"))
    assert peer.resets() == [(1, Code.FLOW_CONTROL_ERROR)]
    # It is over, and owes what it was given.
    peer.application.handlers[1].stream.release(60_000, kept[1])
    peer.send(opening(5), frame(codes.DATA, 0, 5, bytes(40_000)))
    assert peer.application.handlers[5].stream.keep(40_000) == 40_000
    peer.application.handlers[3].stream.release(60_000, kept[3])
    updates = [(each.stream, http2_peer.number(each.payload)) for each in peer.said()]
    # With the byte that was thrown away.
    assert updates == [(0, 40_001), (0, 20_000), (3, 60_000)]


def test_answers_allow_for_the_frames_that_come_of_them() -> None:
    peer = Peer(Limits(idle_frames=5))
    update = frame(codes.WINDOW_UPDATE, 0, 0, long(1))
    for stream in range(1, 401, 2):
        peer.send(request(stream), update)
    peer.send(*[update] * 300)
    assert not peer.session.ended


def test_pings_too_close_together_are_struck() -> None:
    peer = quiet(Limits(ping_interval_s=10, ping_strikes=2))
    peer.send(opening(1), PING)
    peer.clock.now_s += 10
    peer.send(PING, PING, PING)
    assert not peer.session.ended
    peer.send(PING)
    assert peer.error() == (Code.ENHANCE_YOUR_CALM, "too_many_pings")


def test_pings_are_measured_from_the_last_answer_and_by_whether_calls_run() -> None:
    limits = Limits(ping_interval_s=10, ping_interval_idle_s=1000, ping_strikes=1)
    peer = Peer(limits)
    for stream in range(1, 41, 2):
        peer.send(request(stream), PING)
    assert not peer.session.ended
    peer.clock.now_s += 10
    peer.send(PING)
    peer.clock.now_s += 10
    peer.send(PING)
    assert peer.error()[1] == "too_many_pings"
    permitted = Peer(dataclasses.replace(limits, keepalive_without_calls=True))
    for _ in range(9):
        permitted.clock.now_s += 10
        permitted.send(PING)
    assert not permitted.session.ended


def test_no_strikes_means_any_number_of_pings() -> None:
    peer = Peer(Limits(ping_strikes=0))
    peer.send(*[PING] * 100)
    assert not peer.session.ended


# -- windows


def test_a_stream_may_not_send_more_than_its_window() -> None:
    peer = quiet(Limits(stream_window_bytes=100), takes=False)
    peer.send(opening(1), frame(codes.DATA, 0, 1, bytes(100)))
    assert peer.resets() == []
    peer.send(frame(codes.DATA, 0, 1, b"x"))
    assert peer.resets() == [(1, Code.FLOW_CONTROL_ERROR)]
    assert len(peer.application.handlers[1].body) == 100


def test_a_connection_may_not_send_more_than_its_window() -> None:
    peer = quiet(Limits(stream_window_bytes=2**20, connection_window_bytes=2**17), takes=False)
    peer.send(opening(1), opening(3), frame(0, 0, 1, bytes(2**16)), frame(0, 0, 3, bytes(2**16)))
    assert peer.resets() == []
    peer.send(frame(codes.DATA, 0, 1, b"x"))
    assert peer.error()[0] is Code.FLOW_CONTROL_ERROR


def test_windows_open_again_only_for_what_was_taken() -> None:
    peer = quiet(Limits(stream_window_bytes=1000, connection_window_bytes=65535), takes=False)
    peer.send(opening(1), frame(codes.DATA, 0, 1, bytes(1000)))
    assert peer.said() == []
    stream = peer.application.handlers[1].stream
    stream.taken(249)
    assert peer.said() == []
    stream.taken(1)
    (update,) = peer.said()
    assert (update.kind, update.stream, update.payload) == (codes.WINDOW_UPDATE, 1, long(250))
    peer.send(frame(codes.DATA, 0, 1, bytes(250)))
    assert peer.resets() == []
    peer.send(frame(codes.DATA, 0, 1, b"x"))
    assert peer.resets() == [(1, Code.FLOW_CONTROL_ERROR)]


def test_thrown_away_bytes_give_the_connections_window_back() -> None:
    peer = quiet(Limits(connection_window_bytes=65535))
    peer.send(opening(1))
    peer.application.handlers[1].stream.reset(Code.CANCEL)
    for _ in range(20):
        peer.send(frame(codes.DATA, 0, 1, bytes(2**14)))
    increments = [http2_peer.number(each.payload) for each in peer.said() if each.kind == codes.WINDOW_UPDATE]
    assert sum(increments) == 20 * 2**14


def test_answers_wait_for_the_clients_windows() -> None:
    peer = quiet()
    peer.send(settings((4, 10)), opening(1, END), opening(3, END))
    for stream in (1, 3):
        peer.application.handlers[stream].stream.respond(HEAD, [b"0123456789abcdef"], 16, TRAILERS)
    assert body(peer) == b"0123456789" * 2
    peer.send(frame(codes.WINDOW_UPDATE, 0, 3, long(5)))
    assert body(peer) == b"abcde"
    peer.send(settings((4, 16)))
    said = peer.said()
    assert [(each.stream, each.payload) for each in said if each.kind == codes.DATA] == [(1, b"abcdef"), (3, b"f")]
    assert [each.stream for each in said if each.flags == END] == [1, 3]
    assert peer.session.sender.unsent_bytes == 0


def test_a_smaller_window_makes_those_of_streams_negative() -> None:
    peer = quiet()
    peer.send(settings((4, 10)), opening(1, END))
    peer.application.handlers[1].stream.respond(HEAD, [bytes(20)], 20, TRAILERS)
    assert len(body(peer)) == 10
    peer.send(settings((4, 5)), frame(codes.WINDOW_UPDATE, 0, 1, long(5)))
    assert body(peer) == b""
    peer.send(frame(codes.WINDOW_UPDATE, 0, 1, long(1)))
    assert len(body(peer)) == 1


def test_a_window_that_settings_make_too_large_breaks_the_connection() -> None:
    peer = quiet()
    peer.send(opening(1), frame(codes.WINDOW_UPDATE, 0, 1, long(2**30)), settings((4, 2**31 - 1)))
    assert peer.error()[0] is Code.FLOW_CONTROL_ERROR


def test_streams_take_turns_of_64_kib_each() -> None:
    peer = quiet()
    peer.send(settings((4, 2**20)), opening(1, END), opening(3, END), frame(codes.WINDOW_UPDATE, 0, 0, long(2**20)))
    peer.session.sender.held = True
    for stream in (1, 3):
        peer.application.handlers[stream].stream.respond(HEAD, [bytes(140000)], 140000, TRAILERS)
    peer.session.sender.held = False
    peer.session.sender.pump()
    frames = [(each.stream, len(each.payload)) for each in peer.said() if each.kind == codes.DATA]
    turns = [
        [stream, sum(size for _, size in group)] for stream, group in itertools.groupby(frames, lambda each: each[0])
    ]
    assert turns == [[1, 65536], [3, 65536], [1, 65536], [3, 65536], [1, 8928], [3, 8928]]
    assert max(size for _, size in frames) == 16384


def test_a_held_up_call_is_told_when_there_is_room() -> None:
    peer = quiet(Limits(stream_unsent_bytes=100))
    peer.send(settings((4, 0)), opening(1))
    handler = peer.application.handlers[1]
    handler.stream.send(HEAD, [bytes(99)], 99)
    assert handler.stream.has_room()
    handler.stream.send(None, [bytes(2)], 2)
    assert not handler.stream.has_room()
    peer.send(frame(codes.WINDOW_UPDATE, 0, 1, long(1)))
    assert handler.times_writable == 0
    peer.send(frame(codes.WINDOW_UPDATE, 0, 1, long(1)))
    assert handler.times_writable == 1


def test_no_calls_are_taken_while_too_many_answers_wait() -> None:
    peer = quiet(Limits(unsent_bytes=1000))
    peer.send(settings((4, 0)), opening(1, END))
    peer.application.handlers[1].stream.respond(HEAD, [bytes(1001)], 1001, TRAILERS)
    peer.said()
    peer.send(opening(3))
    assert peer.resets() == [(3, Code.REFUSED_STREAM)]
    peer.send(frame(codes.RST_STREAM, 0, 1, long(8)), opening(5))
    assert peer.resets() == []
    assert peer.session.sender.waiting == {}


def test_small_pieces_do_not_keep_the_large_read_they_came_in() -> None:
    peer = quiet()
    seen: list[object] = []
    peer.send(opening(1))
    peer.application.handlers[1].data = lambda piece, ended: seen.append(type(piece))  # type: ignore[method-assign]
    peer.send(frame(0, 0, 1, bytes(100)), frame(0, 0, 1, bytes(2**14)), frame(0, 0, 1, bytes(5000)) + bytes(90000))
    assert seen == [bytes, memoryview, bytes]


# -- time


def test_a_client_that_says_nothing_is_not_waited_for() -> None:
    for data in (b"", codes.PREFACE[:5], codes.PREFACE + settings()):
        peer = Peer(Limits(preface_timeout_s=5), greets=False)
        peer.send(data)
        peer.wait(4.9)
        assert not peer.session.ended
        peer.wait(0.2)
        assert peer.error()[0] is Code.SETTINGS_TIMEOUT


@pytest.mark.parametrize("piece", [opening(1)[:15], frame(codes.HEADERS, 0, 1, b"\x82"), b"\0"])
def test_half_a_frame_is_not_waited_for(piece: bytes) -> None:
    peer = quiet(Limits(header_timeout_s=5))
    peer.send(piece)
    peer.wait(4.9)
    assert not peer.session.ended
    peer.wait(0.2)
    assert peer.error()[0] is Code.ENHANCE_YOUR_CALM


def test_a_whole_frame_ends_the_wait() -> None:
    peer = quiet(Limits(header_timeout_s=5))
    data = opening(1)
    peer.send(data[:15])
    peer.wait(4)
    peer.send(data[15:])
    peer.wait(4)
    assert not peer.session.ended


def test_reads_that_end_within_frames_again_and_again_are_not_slow() -> None:
    peer = Peer(Limits(header_timeout_s=5))
    data = b"".join(map(request, range(1, 81, 2)))
    size = len(request(1))
    for at in range(-size // 2, len(data), size):
        peer.send(data[max(0, at) : at + size])
        peer.wait(1)
    assert not peer.session.ended
    slow = quiet(Limits(header_timeout_s=5))
    slow.send(frame(codes.HEADERS, 0, 1, b"\x82"))
    for _ in range(2):
        slow.wait(2)
        slow.send(frame(codes.CONTINUATION, 0, 1, b"\x86"))
    slow.wait(2)
    assert slow.error()[0] is Code.ENHANCE_YOUR_CALM


def test_an_answer_that_is_not_taken_is_given_up_after_a_while_without_progress() -> None:
    peer = quiet(Limits(write_timeout_s=10))
    peer.send(settings((4, 5)), opening(1, END), opening(3, END))
    for stream in (1, 3):
        peer.application.handlers[stream].stream.respond(HEAD, [bytes(20)], 20, TRAILERS)
    peer.wait(9)
    peer.send(frame(codes.WINDOW_UPDATE, 0, 3, long(1)))
    peer.said()
    peer.wait(2)
    assert peer.resets() == [(1, Code.CANCEL)]
    assert peer.application.handlers[1].reset_code == Code.CANCEL
    peer.wait(9)
    assert peer.resets() == [(3, Code.CANCEL)]


def test_answers_behind_others_have_time_while_anything_moves() -> None:
    peer = quiet(Limits(write_timeout_s=10))
    peer.send(settings((4, 2**20)), opening(1, END), opening(3, END))
    for stream in (1, 3):
        peer.application.handlers[stream].stream.respond(HEAD, [bytes(70_000)], 70_000, TRAILERS)
    for _ in range(4):
        peer.wait(9)
        peer.send(frame(codes.WINDOW_UPDATE, 0, 0, long(1)))
    assert peer.resets() == []
    peer.wait(11)
    assert {stream for stream, _ in peer.resets()} == {1, 3}


def test_what_cannot_be_read_is_not_late() -> None:
    peer = quiet(Limits(header_timeout_s=5, keepalive_time_s=10, keepalive_timeout_s=5, write_timeout_s=math.inf))
    peer.send(opening(1), opening(3)[:15])
    peer.wait(4)
    peer.session.sender.held = True
    for _ in range(10):
        peer.wait(30)
    peer.session.sender.held = False
    peer.wait(4)
    assert not peer.session.ended
    peer.wait(2)
    assert peer.error()[0] is Code.ENHANCE_YOUR_CALM


def test_idle_connections_are_told_to_go_and_busy_ones_are_not() -> None:
    limits = Limits(idle_timeout_s=50, linger_s=5, keepalive_time_s=math.inf)
    idle, busy = Peer(limits), quiet(limits)
    busy.send(opening(1))
    for peer in (idle, busy):
        peer.wait(49)
        assert peer.session.leaving is session.Leaving.NO
        peer.wait(2)
    assert idle.session.leaving is session.Leaving.ANNOUNCED
    assert busy.session.leaving is session.Leaving.NO
    idle.wait(5)
    assert idle.session.ended


def test_silence_is_asked_for_life_and_ended_without() -> None:
    peer = quiet(Limits(keepalive_time_s=10, keepalive_timeout_s=5, idle_timeout_s=math.inf))
    peer.send(opening(1))
    peer.wait(0)
    peer.wait(10)
    (ping,) = peer.said()
    peer.send(frame(codes.PING, codes.ACK, 0, ping.payload))
    peer.wait(6)
    assert not peer.session.ended
    peer.wait(10)
    assert [each.kind for each in peer.said()] == [codes.PING]
    peer.wait(5)
    assert peer.session.ended
    assert peer.application.handlers[1].reset_code == Code.CANCEL


def test_connections_without_calls_are_asked_only_where_that_is_permitted() -> None:
    for permitted in (False, True):
        limits = Limits(keepalive_time_s=10, keepalive_without_calls=permitted, idle_timeout_s=math.inf)
        peer = Peer(limits)
        peer.wait(0)
        peer.wait(11)
        assert [each.kind for each in peer.said()] == [codes.PING] * permitted


def test_questions_stop_where_no_data_goes_between() -> None:
    peer = quiet(Limits(keepalive_time_s=10, keepalive_timeout_s=5, keepalive_pings=2, idle_timeout_s=math.inf))
    peer.send(opening(1))
    asked = 0
    for _ in range(10):
        peer.wait(11)
        for ping in peer.said():
            asked += 1
            peer.send(frame(codes.PING, codes.ACK, 0, ping.payload))
    assert asked == 2


def test_old_connections_are_told_to_go_and_cut_after_their_grace() -> None:
    peer = quiet(Limits(age_s=100, age_grace_s=30, linger_s=5, keepalive_time_s=math.inf))
    peer.send(opening(1))
    steps = []
    for seconds in (89, 22, 6):
        peer.wait(seconds)
        steps.append(peer.session.leaving)
    assert steps == [session.Leaving.NO, session.Leaving.ANNOUNCED, session.Leaving.FINAL]
    assert not peer.session.ended
    peer.wait(25)
    assert peer.error()[0] is Code.NO_ERROR
    assert peer.application.handlers[1].reset_code == Code.CANCEL


def test_ages_are_spread() -> None:
    ages = {Limits(age_s=10).one_age_s() for _ in range(100)}
    assert len(ages) > 50
    assert all(9 <= age <= 11 for age in ages)
    assert Limits().one_age_s() == math.inf


def test_every_limit_is_explained() -> None:
    assert all(field.metadata["words"] for field in dataclasses.fields(Limits))
