"""A request of one connection on its way in, and its response on its way out.

Decides nothing. Must never hold its request and body once both are done with.
"""

from __future__ import annotations

from typing import Protocol

from gpu_worker.http import messages


class Asker(Protocol):
    """The connection that a request came on."""

    def answered(self, exchange: Exchange) -> None:
        """Hears that the response is there."""
        ...


class Exchange:
    """`held_bytes` are booked for its body. A `parallel` request may run beside others of its connection."""

    __slots__ = (
        "chunked",
        "chunks",
        "connection",
        "expects",
        "held_bytes",
        "keep_alive",
        "last",
        "parallel",
        "request",
        "response",
    )

    def __init__(self, connection: Asker, request: messages.Request) -> None:
        self.connection = connection
        self.request = request
        self.response: messages.Response | None = None
        self.chunks: list[bytes] = []
        self.held_bytes = 0
        self.keep_alive = False
        self.parallel = False
        self.expects = False
        self.chunked = True
        self.last = False

    def begin(self) -> None:
        """From now on the request can be answered."""
        self.request.answer = self.answer

    def answer(self, response: messages.Response) -> None:
        """Takes the first response; a later one is dropped."""
        if self.response is None:
            self.response = response
            # Else the exchange, its request and the body would hold each other until garbage is searched for.
            self.request.answer = too_late
            if response.stream is None:
                self.request.inference = None
            self.connection.answered(self)


def too_late(_response: messages.Response) -> None:
    """A request that nobody handles yet, or that has its answer, takes none."""
