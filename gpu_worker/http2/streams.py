"""One stream: what the application sees of a request, and does to answer it.

Holds what is on its way out. Whether it may go is decided by the sender, whether frames may come by the session.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gpu_worker.http2 import codes, flow, frames, headers

Buffer = bytes | bytearray | memoryview


class Handler(Protocol):
    """What an application does with one stream. Nothing here may block; what raises ends the connection."""

    def data(self, piece: Buffer, ended: bool) -> None:  # noqa: FBT001 - called for each frame
        """Takes a piece of the request's body, which stays valid, and owes `Stream.consumed` its length."""
        ...

    def ended(self) -> None:
        """The request ended without another piece."""
        ...

    def reset(self, code: int) -> None:
        """The stream is gone, its answer can go nowhere."""
        ...

    def writable(self) -> None:
        """There is room again, after `Stream.has_room` said no."""
        ...


class Application(Protocol):
    """What answers the requests of a connection."""

    def view(self, head: headers.Head) -> Any:
        """What to make of a head; kept with it for requests that look the same."""
        ...

    def view_like(self, view: Any, fields: tuple[headers.Field, ...], shared: int) -> Any:
        """What to make of a head of `fields`, whose first `shared` alone made `view`; None where `view` is to say."""
        ...

    def opened(self, stream: Stream, head: headers.Head, ended: bool) -> Handler:  # noqa: FBT001 - called for each request
        """A request began. Its stream may be answered at once."""
        ...


Respond = Callable[["Stream", frames.Block, Sequence[Buffer], int, frames.Block], None]


class Host(Protocol):
    """What a stream asks of its connection."""

    notes: set[str]

    @property
    def respond(self) -> Respond: ...

    def send(self, stream: Stream, head: frames.Block | None, parts: Sequence[Buffer], size: int) -> None: ...

    def finish(self, stream: Stream, trailers: frames.Block) -> None: ...

    def reset(self, stream: Stream, code: codes.Code) -> None: ...

    def consumed(self, stream: Stream, size: int) -> None: ...

    def kept(self, size: int) -> int: ...

    def released(self, stream: Stream, size: int, returned: int) -> None: ...

    def lingers(self) -> None: ...

    def rested(self) -> None: ...

    def go_away(self) -> None: ...

    def note(self, what: str) -> None: ...

    @property
    def held(self) -> bool:
        """Whether the client takes nothing at the moment, and so nothing is read from it."""
        ...


class Stream(flow.Inflow):
    """A request and its response. After the end every method may still be called, and does nothing."""

    __slots__ = (
        "handler",
        "host",
        "hungry",
        "id",
        "length_left",
        "local_closed",
        "pending",
        "pending_bytes",
        "progress_s",
        "remote_closed",
        "room_bytes",
        "trailers",
        "window",
    )

    def __init__(self, identifier: int, host: Host, window: int, limits: tuple[int, int]) -> None:
        """`window` is the client's, `limits` are the window given to it and the room for what is not sent yet."""
        # Its own of what Inflow would set: one call less for each stream.
        window_bytes = limits[0]
        self.left = window_bytes
        self.owed = 0
        self.quarter = window_bytes >> 2 or 1
        self.id = identifier
        self.host = host
        self.handler: Handler = NOBODY
        self.window = window
        self.length_left = -1
        self.remote_closed = False
        self.local_closed = False
        self.hungry = False
        self.pending: collections.deque[Buffer] | None = None
        self.pending_bytes = 0
        self.room_bytes = limits[1]
        self.trailers: frames.Block | None = None
        self.progress_s = 0.0

    def respond(self, head: frames.Block, parts: Sequence[Buffer], size: int, trailers: frames.Block) -> None:
        """The whole answer at once; `size` is the length of `parts` in bytes, which must not change any more."""
        if not self.local_closed:
            self.host.respond(self, head, parts, size, trailers)

    def send(self, head: frames.Block | None, parts: Sequence[Buffer], size: int) -> None:
        """A part of the answer, its head first where this is the first."""
        if not self.local_closed:
            self.host.send(self, head, parts, size)

    def finish(self, trailers: frames.Block) -> None:
        """Ends the answer, once all of it is out; `trailers` may be its only head."""
        if not self.local_closed:
            self.host.finish(self, trailers)

    def reset(self, code: codes.Code) -> None:
        """Ends the stream at once; its handler hears nothing more."""
        if not self.local_closed:
            self.host.reset(self, code)

    def has_room(self) -> bool:
        """Whether more may be sent; if not, `Handler.writable` is called once there is."""
        self.hungry = self.pending_bytes >= self.room_bytes
        return not self.hungry

    def taken(self, size: int) -> None:
        """Gives the client room for `size` bytes more: they were taken."""
        self.host.consumed(self, size)

    def keep(self, size: int) -> int:
        """`size` bytes came that cannot be taken yet: the client may send as much on its other streams meanwhile.

        Returns of how many bytes that is so, and `release` is owed; it is of fewer once much is kept.
        """
        return self.host.kept(size)

    def release(self, size: int, returned: int) -> None:
        """As `taken`; `returned` bytes of them the connection's window got back when they were kept."""
        self.host.released(self, size, returned)

    def lingers(self) -> None:
        """Work goes on for the stream, though it is over: it counts as one until `rested`."""
        self.host.lingers()

    def rested(self) -> None:
        """That work has ended."""
        self.host.rested()

    def go_away(self) -> None:
        """Tells the connection's client to go elsewhere with its next requests."""
        self.host.go_away()


class _Nobody:
    """The handler of a stream that is gone, or was never handed over."""

    def data(self, piece: Buffer, ended: bool) -> None:  # noqa: FBT001 - Handler's
        pass

    def ended(self) -> None:
        pass

    def reset(self, code: int) -> None:
        pass

    def writable(self) -> None:
        pass


NOBODY = _Nobody()
