"""A call as the services see it, whichever front carries it.

Services know messages and calls, never sockets: what they raise as InferenceError, the front tells as a status.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from google.protobuf import message as protobuf

from gpu_worker.engine import border


class Call(Protocol):
    """What a handler may ask of the call that it serves."""

    @property
    def deadline_s(self) -> float | None:
        """When the client stops waiting, on the clock of the event loop; None for never."""
        ...

    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """What the client sent along: lower-case names, in order; bytes where the name ends in ``-bin``."""
        ...

    async def write(self, message: protobuf.Message) -> None:
        """Sends one message of a streaming call; returns once the client reads fast enough to be sent more."""
        ...


class PartsCall(Call, Protocol):
    """A call whose messages are bytes."""

    async def write_parts(self, parts: list[border.Buffer]) -> None:
        """As `write`, of a message in pieces that must not change any more."""
        ...


Handler = Callable[[Any, Call], Awaitable[protobuf.Message]]


@dataclasses.dataclass(frozen=True, slots=True)
class Unary:
    """One request, one answer. The handler raises InferenceError."""

    request: type[protobuf.Message]
    handle: Handler


@dataclasses.dataclass(frozen=True, slots=True)
class Streaming:
    """Requests as they come, answers through `Call.write`; the call ends well when the handler returns.

    With `request` None requests are bytes and the call is a PartsCall, which not every front can do.
    """

    request: type[protobuf.Message] | None
    handle: Callable[[AsyncIterator[Any], Any], Awaitable[None]]


Method = Unary | Streaming
Table = Mapping[str, Method]
"""Methods by path, as in ``/package.Service/Method``."""


def within_span(request: border.InferRequest, call: Call) -> None:
    """Notes the span that the client made the call in."""
    if request.received is not None:
        parent = value(call, "traceparent").decode("latin-1")
        request.received = dataclasses.replace(request.received, parent=parent)


def texts(call: Call) -> Iterable[tuple[str, str]]:
    """The metadata whose values are text."""
    return ((name, value) for name, value in call.metadata() if isinstance(value, str))


def value(call: Call, name: str) -> bytes:
    """The first value of a lower-case metadata name; empty where it was not sent."""
    found = next((value for key, value in call.metadata() if key == name), b"")
    return found.encode() if isinstance(found, str) else found
