"""A request of one connection on its way in, and its response on its way out.

Decides nothing. Must never hold a body once it is done with.
"""

from __future__ import annotations

from typing import Protocol

from gpu_worker.engine import border
from gpu_worker.http import messages


class Asker(Protocol):
    """The connection that a request came on."""

    def answered(self, exchange: Exchange) -> None:
        """Hears that the response is there."""
        ...


class Exchange(messages.Request):
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
        "response",
    )

    def __init__(
        self,
        connection: Asker,
        method: bytes = b"",
        target: bytes = b"",
        headers: dict[bytes, bytes] | None = None,
        body: border.Buffer = b"",
    ) -> None:
        super().__init__(method, target, {} if headers is None else headers, body)
        self.connection = connection
        self.response: messages.Response | None = None
        self.chunks: list[bytes] = []
        self.held_bytes = 0
        self.keep_alive = False
        self.parallel = False
        self.expects = False
        self.chunked = True
        self.last = False

    def answer(self, response: messages.Response) -> None:
        if self.response is None:
            self.response = response
            if response.stream is None:
                # Else the request and its inference would hold each other until garbage is searched for.
                self.inference = None
            self.connection.answered(self)
