"""An independent implementation's client and this server agree, whatever the client does in whatever order."""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from gpu_worker.http2 import codes, frames, hpack, session
from gpu_worker.http2 import limits as http2_limits
from tests.support import http2_peer

LIMITS = http2_limits.Limits(
    stream_window_bytes=2**14, connection_window_bytes=2**17, unread_bytes=2**15, frame_bytes=2**14
)
HEADERS = [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "here")]
BLOCK = frames.Block(hpack.encode(((b":status", b"200"),)), last=False)

sizes = st.sampled_from([0, 1, 100, 5000, 16384, 40000])
extra = st.lists(
    st.tuples(st.sampled_from(["a", "grpc-timeout", "x-trace"]), st.text("abc019", max_size=12)), max_size=4
)


class Agreement(RuleBasedStateMachine):
    """The client asks and reads; what it sent and what the server took, and the other way round, must be the same."""

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.application = http2_peer.Recorder(answers=False, takes=False)
        self.clock = http2_peer.Clock()
        self.server = session.Session(self.application, LIMITS, self.clock)
        self.server.start()
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self.client = h2.connection.H2Connection(config)
        self.client.initiate_connection()
        self.sent: dict[int, bytes] = {}
        self.answered: dict[int, bytes] = {}
        self.got: dict[int, bytes] = {}
        self.finished: set[int] = set()
        self.reset: set[int] = set()
        self.taken: dict[int, int] = {}
        self.kept: dict[int, tuple[int, int]] = {}
        self.client_taken: dict[int, int] = {}
        self.cut = 7
        self.exchange()

    def exchange(self) -> None:
        """Both sides read all that the other has written, in pieces that end anywhere."""
        while True:
            data = self.client.data_to_send()
            for at in range(0, len(data), self.cut):
                self.server.receive(data[at : at + self.cut])
            said = b"".join(b"".join(out) for out in iter(self.server.sender.take, []))
            self.server.sender.pump()
            if not said and not data:
                return
            for event in self.client.receive_data(said):
                self.note(event)

    def note(self, event: h2.events.Event) -> None:
        assert not isinstance(event, h2.events.ConnectionTerminated)
        if isinstance(event, h2.events.DataReceived):
            assert event.stream_id is not None
            self.got[event.stream_id] = self.got.get(event.stream_id, b"") + (event.data or b"")
        elif isinstance(event, h2.events.StreamEnded):
            self.finished.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            assert event.error_code in (codes.Code.NO_ERROR, codes.Code.CANCEL)

    @rule(target=streams, more=extra, cut=st.sampled_from([3, 11, 100, 10**6]))
    def open(self, more: list[tuple[str, str]], cut: int) -> Any:
        if self.client.open_outbound_streams >= 20:
            return multiple()
        self.cut = cut
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, HEADERS + more)
        self.sent[stream] = b""
        self.exchange()
        given = [tuple(map(str.encode, field)) for field in HEADERS + more]
        assert list(self.application.heads[stream].fields) == given
        return stream

    @rule(stream=streams, size=sizes, padding=st.sampled_from([None, 0, 200]), cut=st.sampled_from([1000, 10**6]))
    def send(self, stream: int, size: int, padding: int | None, cut: int) -> None:
        if not self.is_open(stream):
            return
        self.cut = cut
        room = self.client.local_flow_control_window(stream) - (0 if padding is None else padding + 1)
        size = min(size, room, self.client.max_outbound_frame_size - 201)
        if size < 0:
            return
        data = bytes([len(self.sent[stream]) % 251]) * size
        self.client.send_data(stream, data, pad_length=padding)
        self.sent[stream] += data
        self.exchange()

    @rule(stream=streams, trailers=st.booleans())
    def end(self, stream: int, trailers: bool) -> None:  # noqa: FBT001
        if not self.is_open(stream):
            return
        if trailers:
            self.client.send_headers(stream, [("checksum", "1")], end_stream=True)
        else:
            self.client.end_stream(stream)
        self.exchange()
        assert self.application.handlers[stream].over

    @rule(stream=streams, share=st.floats(0, 1))
    def take(self, stream: int, share: float) -> None:
        handler = self.application.handlers[stream]
        due = int(share * self.untaken(stream))
        self.taken[stream] = self.taken.get(stream, 0) + due
        handler.stream.taken(due)
        self.exchange()

    @rule(stream=streams, share=st.floats(0, 1))
    def keep(self, stream: int, share: float) -> None:
        """Bytes are kept once; what the connection got back of them is told when they are taken."""
        due = int(share * self.untaken(stream))
        size, returned = self.kept.get(stream, (0, 0))
        returned += self.application.handlers[stream].stream.keep(due)
        self.kept[stream] = (size + due, returned)
        self.exchange()

    @rule(stream=streams)
    def release(self, stream: int) -> None:
        size, returned = self.kept.pop(stream, (0, 0))
        self.taken[stream] = self.taken.get(stream, 0) + size
        self.application.handlers[stream].stream.release(size, returned)
        self.exchange()

    def untaken(self, stream: int) -> int:
        size = len(self.application.handlers[stream].body)
        return size - self.taken.get(stream, 0) - self.kept.get(stream, (0, 0))[0]

    @rule(stream=streams, size=sizes)
    def answer(self, stream: int, size: int) -> None:
        if stream in self.reset or stream in self.answered:
            return
        data = bytes([stream % 251]) * size
        self.answered[stream] = data
        self.application.handlers[stream].stream.respond(BLOCK, [data[:7], data[7:]], size, http2_peer.TRAILERS)
        self.exchange()

    @rule(stream=streams)
    def acknowledge(self, stream: int) -> None:
        waits = len(self.got.get(stream, b"")) - self.client_taken.get(stream, 0)
        if waits and stream not in self.reset:
            self.client_taken[stream] = len(self.got[stream])
            self.client.acknowledge_received_data(waits, stream)
            self.exchange()

    @rule(stream=consumes(streams))
    def cancel(self, stream: int) -> None:
        if stream in self.finished or self.is_closed(stream):
            return
        self.client.reset_stream(stream, codes.Code.CANCEL)
        self.reset.add(stream)
        self.exchange()
        assert stream not in self.server.streams

    @rule(window=st.sampled_from([0, 100, 65535, 10**6]), frame=st.sampled_from([16384, 20000]))
    def configure(self, window: int, frame: int) -> None:
        codes_of = h2.settings.SettingCodes
        self.client.update_settings({codes_of.INITIAL_WINDOW_SIZE: window, codes_of.MAX_FRAME_SIZE: frame})
        self.exchange()

    @rule()
    def ping(self) -> None:
        self.clock.now_s += 10**4
        self.client.ping(b"12345678")
        self.exchange()

    def is_open(self, stream: int) -> bool:
        """Whether the client may send on the stream."""
        if stream in self.reset or self.is_closed(stream):
            return False
        return not self.application.handlers[stream].over and stream in self.server.streams

    def is_closed(self, stream: int) -> bool:
        return (
            self.client._stream_is_closed_by_reset(stream)
            or stream not in self.client.streams
            or bool(self.client.streams[stream].closed)
        )

    @invariant()
    def both_sides_know_the_same(self) -> None:
        assert not self.server.ended
        for stream, data in self.sent.items():
            assert self.application.handlers[stream].body == data
        for stream, data in self.answered.items():
            got = self.got.get(stream, b"")
            assert data.startswith(got)
            if stream in self.finished:
                assert got == data
        assert self.server.sender.unsent_bytes == sum(each.pending_bytes for each in self.server.streams.values())
        assert self.server.sender.unsent_bytes >= 0
        self.windows_are_what_was_given()

    def windows_are_what_was_given(self) -> None:
        """What is missing of the connection's window was not taken, less what was returned before; padding aside."""
        returned = sum(each[1] for each in self.kept.values())
        unread = sum(map(self.untaken, self.sent)) + sum(each[0] for each in self.kept.values())
        inflow = self.server._inflow
        assert self.server._unread_bytes == returned <= LIMITS.unread_bytes
        assert inflow.left + inflow.owed + unread - returned == LIMITS.connection_window_bytes
        assert self.client.outbound_flow_control_window == inflow.left


Agreement.TestCase.settings = hypothesis.settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAgreement = Agreement.TestCase
