"""One connection without its socket: frames in, calls of the application and frames out (RFC 9113).

Decides which frame may come when, what becomes of streams, and how the connection ends. Must never raise, wait, or keep
what a peer can make larger than the limits.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import structlog

from gpu_worker.http2 import budget as http2_budget
from gpu_worker.http2 import codes, flow, frames, headers, hpack, sender, streams
from gpu_worker.http2 import data as data_frames
from gpu_worker.http2 import limits as http2_limits

log = structlog.get_logger(__name__)

_REMEMBERED = 4096
_NOTES = 64
_GOODBYE = b"goodbye?"
_ALIVE = b"alive??\0"
_HEADERS_FLAGS = codes.PADDED | codes.PRIORITIZED | codes.END_HEADERS
_OVERSIZED = frames.Block(hpack.encode(((b":status", b"431"),)), last=True)


class Leaving(enum.IntEnum):
    """How far a connection is on its way out (section 6.8)."""

    NO = 0
    ANNOUNCED = 1
    """The client was told to open no more streams; those it opened before it heard are served."""
    FINAL = 2
    """The last stream is named; the connection ends with it."""


class Session:
    """See the module. `wake` is called when `sender.out` fills, and when `ended` becomes true."""

    def __init__(
        self,
        application: streams.Application,
        limits: http2_limits.Limits,
        clock: Callable[[], float],
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.streams: dict[int, streams.Stream] = {}
        self.budget = http2_budget.Budget(limits)
        self.sender = sender.Sender(limits, self.budget, clock, self._over)
        self.respond = self.sender.respond
        self.leaving = Leaving.NO
        self.ended = False
        self.last_id = 0
        self.received = 0
        self.pinged = False
        self.notes: set[str] = set()
        self.settled = False
        self.acknowledged = False
        self.incomplete_since_s: float | None = None
        self._application = application
        self._decoder = hpack.Decoder(
            limits.header_table_bytes, limits.header_list_bytes, limits.header_fields, headers.is_allowed
        )
        self._inflow = flow.SharedInflow(limits.connection_window_bytes)
        self._body = data_frames.Body(self, self._inflow)
        self._stream_limits = (limits.stream_window_bytes, limits.stream_unsent_bytes)
        self._lingering = 0
        self._unread_bytes = 0
        self._preface = codes.PREFACE
        self._partial = bytearray()
        self._needed = 0
        self._fragments: list[bytes] = []
        self._fragments_of = self._fragments_flags = self._fragments_bytes = 0
        self._gone: dict[int, None] = {}
        self._gap = range(0)

    def start(self) -> None:
        """Says what a server says first."""
        self.sender.control(frames.settings(self.limits.settings()))
        extra = self.limits.connection_window_bytes - codes.FIRST_WINDOW
        if extra > 0:
            self.sender.control(frames.window_update(0, extra))

    def receive(self, data: bytes) -> None:
        """Takes what came; never raises."""
        if self.ended:
            return
        self.received += 1
        try:
            self._receive(data)
        except codes.ConnectionFault as fault:
            self.fail(fault)
        except Exception:
            log.exception("http2.handler_failed")
            self.fail(codes.ConnectionFault(codes.Code.INTERNAL_ERROR, "internal error; the server's log says more"))

    # -- the streams' side

    def send(
        self, stream: streams.Stream, head: frames.Block | None, parts: Sequence[streams.Buffer], size: int
    ) -> None:
        self.sender.send(stream, head, parts, size)

    def finish(self, stream: streams.Stream, trailers: frames.Block) -> None:
        self.sender.finish(stream, trailers)

    def reset(self, stream: streams.Stream, code: codes.Code) -> None:
        """Tells the client that the stream is over."""
        self.sender.control(frames.reset(stream.id, code))
        self._remember(stream.id)
        self._forget(stream)

    def consumed(self, stream: streams.Stream, size: int) -> None:
        inflow = self._inflow
        inflow.owed += size
        if inflow.owed >= inflow.quarter or inflow.owed >= inflow.left:
            self.credit(0)
        stream.owed += size
        if stream.owed >= stream.quarter and not (stream.remote_closed or stream.local_closed):
            increment = stream.consumed(0)
            self.sender.control(frames.window_update(stream.id, increment))

    def kept(self, size: int) -> int:
        returned = max(0, min(size, self.limits.unread_bytes - self._unread_bytes))
        self._unread_bytes += returned
        self.credit(returned)
        return returned

    def released(self, stream: streams.Stream, size: int, returned: int) -> None:
        self._unread_bytes -= returned
        self._inflow.owed -= returned
        self.consumed(stream, size)

    def lingers(self) -> None:
        self._lingering += 1

    def rested(self) -> None:
        self._lingering -= 1

    def go_away(self) -> None:
        """Asks the client to open no more streams here; what is on its way is still served."""
        if self.leaving is Leaving.NO and not self.ended:
            self.leaving = Leaving.ANNOUNCED
            self.sender.control(frames.go_away(codes.MAX_STREAM, codes.Code.NO_ERROR))
            self.sender.control(frames.ping(_GOODBYE))

    def note(self, what: str) -> None:
        """Keeps what the application wants to know of this connection later; the first few things, each once."""
        if what not in self.notes and len(self.notes) < _NOTES:
            self.notes.add(what)

    @property
    def held(self) -> bool:
        """Whether the socket takes nothing at the moment, and so nothing is read."""
        return self.sender.held

    # -- the connection's side

    def take_leave(self) -> None:
        """Names the last stream; ends with it."""
        if self.leaving is not Leaving.FINAL and not self.ended:
            self.leaving = Leaving.FINAL
            self.sender.control(frames.go_away(self.last_id, codes.Code.NO_ERROR))
            self._end_if_done()

    def ask_for_life(self) -> None:
        """Sends a ping; `pinged` until it is answered."""
        self.pinged = True
        self.sender.control(frames.ping(_ALIVE))

    def fail(self, fault: codes.Fault) -> None:
        """Ends the connection with the reason."""
        if self.ended:
            return
        self.sender.control(frames.go_away(self.last_id, fault.code, fault.words.encode()))
        log.debug("http2.connection_failed", code=fault.code.name, reason=fault.words)
        self.lose()

    def lose(self) -> None:
        """Ends everything; nothing is sent any more but what is on its way out."""
        self.ended = True
        for stream in tuple(self.streams.values()):
            self._abandon(stream, codes.Code.CANCEL)
        self._partial.clear()
        self.incomplete_since_s = None
        self.sender.wake()

    def abandon(self, identifier: int, fault: codes.Fault) -> None:
        """Resets a stream that its client spoiled. ConnectionFault when it spoils too many."""
        stream = self.streams.get(identifier)
        if stream is not None:
            self.give_up(stream, fault)
        else:
            self.sender.control(frames.reset(identifier, fault.code))
            self._remember(identifier)
        self.budget.reset(self.clock())

    def give_up(self, stream: streams.Stream, fault: codes.Fault) -> None:
        """Resets a stream whose client does not go on with it."""
        self.sender.control(frames.reset(stream.id, fault.code))
        self._remember(stream.id)
        self._abandon(stream, fault.code)

    def credit(self, size: int) -> None:
        """Gives the connection's window back what was taken or thrown away."""
        increment = self._inflow.consumed(size)
        if increment and not self.ended:
            self.sender.control(frames.window_update(0, increment))

    def is_idle(self, identifier: int) -> bool:
        """Whether a stream was never opened (section 5.1)."""
        return identifier > self.last_id or not identifier & 1

    def was_reset(self, identifier: int) -> bool:
        """Whether this side ended the stream early: the client may not have known when it went on."""
        return identifier in self._gone

    def count_idle(self, what: str) -> None:
        """Notes a frame that carries nothing."""
        self.budget.idle(what)

    # -- frames

    def _receive(self, data: bytes) -> None:
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return
            data = bytes(self._partial)
            self._partial.clear()
        at = 0
        if self._body.open:
            at = self._body.go_on(data, 0)
        elif self._preface:
            at = self._begin(data)
        self._keep(data, self._take_frames(data, at))

    def _take_frames(self, data: bytes, at: int) -> int:
        """Takes all frames from `at` on that have come far enough; returns where the rest begins."""
        end = len(data)
        body, inflow, most_bytes, table = self._body, self._inflow, self.limits.frame_bytes, self.streams
        header_of = frames.header_of
        self._needed = codes.HEADER_BYTES
        while end - at >= codes.HEADER_BYTES:
            high, low, kind, flags, identifier = header_of(data, at)
            size = high << 16 | low
            identifier &= codes.MAX_STREAM
            at += codes.HEADER_BYTES
            whole = at + size
            # Most requests are one message in one small frame, which breaks no rule that has to be looked at closer.
            if (
                flags == codes.END_STREAM
                and kind == codes.DATA
                and whole <= end
                and 0 < size < data_frames.COPIED_BYTES
                and (stream := table.get(identifier)) is not None
                and size <= stream.left
                and size <= inflow.left
                and stream.length_left < 0
                and not stream.remote_closed
                and not self._fragments_of
            ):
                stream.left -= size
                inflow.left -= size
                stream.remote_closed = True
                stream.handler.data(data[at:whole], True)  # noqa: FBT003 - Handler's
                at = whole
                continue
            if size > most_bytes:
                raise codes.ConnectionFault(codes.Code.FRAME_SIZE_ERROR, "a frame larger than MAX_FRAME_SIZE")
            if kind == codes.HEADERS and size > self.limits.header_block_bytes:
                raise codes.calm("a frame larger than what is kept of one")
            if whole > end and (kind != codes.DATA or (at == end and flags & codes.PADDED)):
                self._needed = self._incomplete(kind, size)
                return at - codes.HEADER_BYTES
            if kind == codes.DATA and not self._fragments_of:
                at = body.take(table.get(identifier), data, at, (size, flags, identifier))
                continue
            if kind == codes.HEADERS and not self._fragments_of and self.settled:
                self._headers(identifier, flags, data[at:whole])
            else:
                self._other(kind, flags, identifier, data[at:whole])
            at = whole
        return at

    def _begin(self, data: bytes) -> int:
        """The connection preface (section 3.4), which may come in pieces."""
        size = min(len(self._preface), len(data))
        if data[:size] != self._preface[:size]:
            raise codes.protocol_error("not an HTTP/2 client: the preface is wrong")
        self._preface = self._preface[size:]
        return size

    def _incomplete(self, kind: int, size: int) -> int:
        """How many bytes must come before a frame can be taken, which is kept until then."""
        if kind == codes.DATA:
            return codes.HEADER_BYTES + 1
        if size > self.limits.header_block_bytes:
            raise codes.calm("a frame larger than what is kept of one")
        if not self.settled and kind != codes.SETTINGS:
            raise codes.protocol_error("the first frame must be SETTINGS")
        return codes.HEADER_BYTES + size

    def _keep(self, data: bytes, at: int) -> None:
        if at < len(data):
            self._partial += data[at:]
        # Reads often end in the middle of a frame: only one that began before the last read is waited for any longer.
        if not (self._partial or self._fragments_of):
            self.incomplete_since_s = None
        elif self.incomplete_since_s is None or (at and not self._fragments_of):
            self.incomplete_since_s = self.clock()

    def _other(self, kind: int, flags: int, identifier: int, payload: bytes) -> None:
        if self._fragments_of and (kind != codes.CONTINUATION or identifier != self._fragments_of):
            raise codes.protocol_error("something else between HEADERS and CONTINUATION")
        if not self.settled and (kind != codes.SETTINGS or flags & codes.ACK):
            raise codes.protocol_error("the first frame must be SETTINGS")
        handle = _HANDLERS.get(kind)
        if handle is None:
            self.budget.idle(f"of unknown type {kind}")
            return
        try:
            handle(self, flags, identifier, payload)
        except codes.StreamFault as fault:
            self.abandon(identifier, fault)

    def _headers(self, identifier: int, flags: int, payload: bytes) -> None:
        if flags & _HEADERS_FLAGS != codes.END_HEADERS:
            self._odd_headers(identifier, flags, payload)
            return
        try:
            if identifier > self.last_id and identifier & 1:
                self._open(identifier, flags & codes.END_STREAM, payload)
            else:
                self._trailers(identifier, flags & codes.END_STREAM, payload)
        except codes.StreamFault as fault:
            self.abandon(identifier, fault)

    def _odd_headers(self, identifier: int, flags: int, payload: bytes) -> None:
        """Such as are not whole, or have more than fields."""
        fragment = frames.read_fragment(payload, flags)
        if flags & codes.END_HEADERS:
            self._headers(identifier, flags & ~_HEADERS_FLAGS | codes.END_HEADERS, fragment)
        else:
            self._fragments_of, self._fragments_flags = identifier, flags
            self._fragments_bytes = 0
            self.incomplete_since_s = self.clock()
            self._add_fragment(fragment)
        if frames.own_priority(payload, flags, identifier):
            raise codes.protocol_error("a stream cannot depend on itself")

    def _on_continuation(self, flags: int, identifier: int, payload: bytes) -> None:
        if identifier != self._fragments_of:
            raise codes.protocol_error("CONTINUATION without HEADERS")
        self._add_fragment(payload)
        if flags & codes.END_HEADERS:
            block, ends = b"".join(self._fragments), self._fragments_flags
            self._fragments, self._fragments_of = [], 0
            self._headers(identifier, ends & codes.END_STREAM | codes.END_HEADERS, block)

    def _add_fragment(self, fragment: bytes) -> None:
        """Bounds what CVE-2024-27316 and its kin leave open: number and bytes of the pieces."""
        if not self._fragments_of & 1:
            raise codes.protocol_error("HEADERS on a stream of even number, or none")
        self._fragments.append(fragment)
        self._fragments_bytes += len(fragment)
        if len(self._fragments) > self.limits.continuations + 1:
            raise codes.calm("too many CONTINUATION frames")
        if self._fragments_bytes > self.limits.header_block_bytes:
            raise codes.calm("a header block larger than what is taken")

    def _open(self, identifier: int, ended: int, block: bytes) -> None:
        expected = self.last_id + 2 if self.last_id else 1
        if identifier != expected:
            self._gap = range(expected, identifier, 2)
        self.last_id = identifier
        head = self._decoder.blocks.get(block)
        if head is None:
            head = self._read(identifier, ended, block)
            if head is None:
                return
        if (
            self.leaving is Leaving.FINAL
            or len(self.streams) + self._lingering >= self.limits.streams
            or self.sender.unsent_bytes > self.limits.unsent_bytes
        ):
            self._refuse(identifier)
            return
        stream = streams.Stream(identifier, self, self.sender.first_window, self._stream_limits)
        self.streams[identifier] = stream
        if head.content_length >= 0:
            stream.length_left = head.content_length
            if ended and head.content_length:
                raise codes.StreamFault(codes.Code.PROTOCOL_ERROR, "content-length without content")
        if ended:
            stream.remote_closed = True
        stream.handler = self._application.opened(stream, head, bool(ended))
        if stream.local_closed:
            stream.handler = streams.NOBODY

    def _read(self, identifier: int, ended: int, block: bytes) -> headers.Head | None:
        """The head in `block`; None where it was answered here."""
        try:
            fields = self._decoder.decode(block)
        except hpack.Oversized:
            self._answer_oversized(identifier, ended)
            return None
        if self._decoder.bad:
            raise headers.malformed("a field that is not allowed")
        head = self._extended(fields) if self._decoder.shared else None
        if head is None:
            head = headers.request(fields)
            head.view = self._application.view(head)
        self._decoder.remember(block, head)
        return head

    def _extended(self, fields: tuple[hpack.Field, ...]) -> headers.Head | None:
        """The head of fields that begin like those of another; None where it is to be read from the start."""
        decoder = self._decoder
        shared = decoder.shared
        base: headers.Head | None = decoder.made
        if base is None:
            try:
                base = headers.request(fields[:shared])
            except codes.StreamFault:
                return None
            base.view = self._application.view(base)
            decoder.made = base
        for name, _value in fields[shared:]:
            if not headers.is_plain(name):
                return None
        view = self._application.view_like(base.view, fields, shared)
        return None if view is None else base.extended(fields, view)

    def _refuse(self, identifier: int) -> None:
        """Not an error: the client may try again, here or elsewhere (section 8.7)."""
        self.sender.control(frames.reset(identifier, codes.Code.REFUSED_STREAM))
        self._remember(identifier)
        # Only what the client could know counts as its fault.
        if self.acknowledged and len(self.streams) >= self.limits.streams:
            self.budget.reset(self.clock())

    def _answer_oversized(self, identifier: int, ended: int) -> None:
        stream = streams.Stream(identifier, self, 0, self._stream_limits)
        stream.remote_closed = bool(ended)
        self.streams[identifier] = stream
        self.sender.finish(stream, _OVERSIZED)
        self.budget.reset(self.clock())

    def _trailers(self, identifier: int, ended: int, block: bytes) -> None:
        # Decoded in any case: the table belongs to the connection.
        fields: tuple[hpack.Field, ...] | None
        try:
            fields = self._decoder.decode(block)
        except hpack.Oversized:
            fields = None
        stream = self.streams.get(identifier)
        if stream is None:
            self._check_late_headers(identifier)
            return
        if stream.remote_closed:
            raise codes.StreamFault(codes.Code.STREAM_CLOSED, "HEADERS after the end of the stream")
        if fields is None or not ended:
            raise codes.StreamFault(codes.Code.PROTOCOL_ERROR, "HEADERS within a request that do not end it")
        if self._decoder.bad:
            raise headers.malformed("a field that is not allowed")
        headers.check_trailers(fields)
        if stream.length_left > 0:
            raise codes.StreamFault(codes.Code.PROTOCOL_ERROR, "less content than content-length says")
        stream.remote_closed = True
        stream.handler.ended()

    def _check_late_headers(self, identifier: int) -> None:
        if identifier in self._gone:
            self.budget.idle("HEADERS of a stream that was reset")
        elif not identifier & 1:
            raise codes.protocol_error("HEADERS on a stream of even number, or none")
        elif identifier in self._gap:
            raise codes.protocol_error("HEADERS on a stream below the last one")
        else:
            raise codes.ConnectionFault(codes.Code.STREAM_CLOSED, "HEADERS on a stream that is closed")

    def _on_data(self, _flags: int, _identifier: int, _payload: bytes) -> None:
        raise codes.protocol_error("DATA between HEADERS and CONTINUATION")

    def _on_priority(self, _flags: int, identifier: int, payload: bytes) -> None:
        if not identifier:
            raise codes.protocol_error("PRIORITY on stream 0")
        self.budget.idle("PRIORITY")
        if len(payload) != frames.PRIORITY_BYTES:
            raise codes.StreamFault(codes.Code.FRAME_SIZE_ERROR, "PRIORITY must have 5 bytes")
        if frames.depends_on(payload, identifier):
            raise codes.StreamFault(codes.Code.PROTOCOL_ERROR, "a stream cannot depend on itself")

    def _on_reset(self, _flags: int, identifier: int, payload: bytes) -> None:
        code = frames.read_number(payload, "RST_STREAM")
        if self.is_idle(identifier):
            raise codes.protocol_error("RST_STREAM on a stream that was never opened")
        self.budget.reset(self.clock())
        stream = self.streams.get(identifier)
        if stream is not None:
            self._abandon(stream, code)

    def _on_settings(self, flags: int, identifier: int, payload: bytes) -> None:
        if identifier:
            raise codes.protocol_error("SETTINGS on a stream")
        if flags & codes.ACK:
            self._on_acknowledged(payload)
            return
        found = frames.read_settings(payload)
        if self.settled:
            self.budget.idle("SETTINGS")
        self.settled = True
        # First, so that the client knows which window the data counts for that a larger one lets go.
        self.sender.control(frames.frame(codes.SETTINGS, codes.ACK, 0))
        # What comes twice counts as it comes last: to walk over all streams for each would cost far more than its bytes.
        for setting, value in dict(found).items():
            self.sender.configure(setting, value, self.streams)

    def _on_acknowledged(self, payload: bytes) -> None:
        if payload:
            raise codes.ConnectionFault(codes.Code.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")
        if self.acknowledged:
            self.budget.idle("an acknowledgement of nothing")
        else:
            self.acknowledged = True
            self._decoder.acknowledged()

    def _on_push_promise(self, _flags: int, _identifier: int, _payload: bytes) -> None:
        raise codes.protocol_error("PUSH_PROMISE from a client")

    def _on_ping(self, flags: int, identifier: int, payload: bytes) -> None:
        if identifier:
            raise codes.protocol_error("PING on a stream")
        if len(payload) != 8:
            raise codes.ConnectionFault(codes.Code.FRAME_SIZE_ERROR, "PING must have 8 bytes")
        if not flags & codes.ACK:
            self.budget.ping(self.clock(), calls=bool(self.streams))
            self.sender.control(frames.ping(payload, ack=True))
        elif payload == _GOODBYE and self.leaving is Leaving.ANNOUNCED:
            self.take_leave()
        elif payload == _ALIVE:
            self.pinged = False
        else:
            self.budget.idle("an answer to no PING")

    def _on_go_away(self, _flags: int, identifier: int, payload: bytes) -> None:
        if identifier:
            raise codes.protocol_error("GOAWAY on a stream")
        frames.read_go_away(payload)
        self.budget.idle("GOAWAY")
        # The client opens no more streams: the connection ends with those there are.
        self.take_leave()

    def _on_window_update(self, _flags: int, identifier: int, payload: bytes) -> None:
        increment = frames.read_increment(payload)
        self.budget.idle("WINDOW_UPDATE")
        if not identifier:
            if not increment:
                raise codes.protocol_error("WINDOW_UPDATE by 0")
            self.sender.grow(increment)
            return
        if self.is_idle(identifier):
            raise codes.protocol_error("WINDOW_UPDATE on a stream that was never opened")
        stream = self.streams.get(identifier)
        if stream is None:
            return
        if not increment:
            raise codes.StreamFault(codes.Code.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        self.sender.grow_stream(stream, increment)

    # -- ends of streams

    def _over(self, stream: streams.Stream) -> None:
        """The last frame of an answer is out; a request that still goes on may stop (section 8.1)."""
        if not stream.remote_closed:
            self.sender.control(frames.reset(stream.id, codes.Code.NO_ERROR))
            self._remember(stream.id)
        stream.local_closed = True
        stream.handler = streams.NOBODY
        del self.streams[stream.id]
        if self.leaving is Leaving.FINAL:
            self._end_if_done()

    def _abandon(self, stream: streams.Stream, code: int) -> None:
        """Tells the handler that its stream is gone."""
        handler = stream.handler
        self._forget(stream)
        handler.reset(code)

    def _forget(self, stream: streams.Stream) -> None:
        stream.local_closed = stream.remote_closed = True
        stream.handler = streams.NOBODY
        self.sender.drop(stream)
        self.streams.pop(stream.id, None)
        if self.leaving is Leaving.FINAL:
            self._end_if_done()

    def _remember(self, identifier: int) -> None:
        if len(self._gone) >= _REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self._gone[identifier] = None

    def _end_if_done(self) -> None:
        if not self.streams and not self.ended:
            self.ended = True
            self.sender.wake()


_Handle = Callable[[Session, int, int, bytes], None]
_HANDLERS: dict[int, _Handle] = {
    codes.DATA: Session._on_data,  # noqa: SLF001 - its own
    codes.PRIORITY: Session._on_priority,  # noqa: SLF001
    codes.RST_STREAM: Session._on_reset,  # noqa: SLF001
    codes.SETTINGS: Session._on_settings,  # noqa: SLF001
    codes.PUSH_PROMISE: Session._on_push_promise,  # noqa: SLF001
    codes.PING: Session._on_ping,  # noqa: SLF001
    codes.GOAWAY: Session._on_go_away,  # noqa: SLF001
    codes.WINDOW_UPDATE: Session._on_window_update,  # noqa: SLF001
    codes.CONTINUATION: Session._on_continuation,  # noqa: SLF001
}
