"""Requests and responses of HTTP as the front's parts pass them on.

Decides how a response looks on the wire; must never know what it says.
"""

from __future__ import annotations

import dataclasses
import functools
import http
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from gpu_worker.engine import border
from gpu_worker.http import streams

JSON = b"application/json"
OCTETS = b"application/octet-stream"
TEXT = b"text/plain; charset=utf-8"

_STATUS = {
    border.ErrorKind.UNKNOWN: 400,
    border.ErrorKind.INTERNAL: 500,
    border.ErrorKind.NOT_FOUND: 404,
    border.ErrorKind.INVALID_ARGUMENT: 400,
    border.ErrorKind.UNAVAILABLE: 503,
    border.ErrorKind.UNSUPPORTED: 501,
    border.ErrorKind.ALREADY_EXISTS: 400,
    border.ErrorKind.CANCELLED: 400,
}


@dataclasses.dataclass(slots=True)
class Response:
    """An answer: `parts` are the body in order, `headers` whole lines that end in CR LF.

    With `close` it is the last of its connection, unless other requests were sent on that already. With `stream` the
    body comes from there instead.
    """

    status: int = 200
    parts: Sequence[border.Buffer] = ()
    content_type: bytes = b""
    headers: bytes = b""
    close: bool = False
    stream: streams.Stream | None = None


class Request:
    """A whole request; `answer` is to be called exactly once, in the event loop, and is safe after the client has gone.

    `headers` has lower-case names. `began_ns` is when its first bytes came, on the monotonic clock. `inference` is set by
    a handler whose work ends when the client goes. With `follows_client` a client that closes its side has gone, while
    others may close it and still wait for their answer. `gone` says that nobody waits any more.
    """

    __slots__ = ("began_ns", "body", "follows_client", "gone", "headers", "inference", "method", "target")

    def __init__(self, method: bytes, target: bytes, headers: dict[bytes, bytes], body: border.Buffer) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.began_ns = time.monotonic_ns()
        self.inference: border.InferRequest | None = None
        self.follows_client = False
        self.gone = False

    def answer(self, response: Response) -> None:
        """Takes the first response; a later one is dropped."""
        raise NotImplementedError


def received(request: Request, *, parent: bool) -> border.Received:
    """When it came, and with `parent` the span that it is part of."""
    now_ns = time.monotonic_ns()
    if not parent:
        return border.Received("HTTP", request.began_ns, now_ns)
    return border.Received("HTTP", request.began_ns, now_ns, request.headers.get(b"traceparent", b"").decode("latin-1"))


def texts(headers: dict[bytes, bytes]) -> Iterator[tuple[str, str]]:
    """Names and values of the headers as text."""
    return ((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers.items())


Handler = Callable[[Request], None]


def ok(body: Any = None) -> Response:
    """A JSON answer, or an empty one."""
    return Response() if body is None else Response(200, (orjson.dumps(body),), JSON)


def failure(error: border.InferenceError) -> Response:
    """The JSON error of `error`, with its status."""
    return refusal(_STATUS[error.kind], error.message)


def refusal(status: int, message: str, headers: bytes = b"") -> Response:
    """A JSON error with a status of its own."""
    return Response(status, (orjson.dumps({"error": message}),), JSON, headers)


def render(response: Response, connection: bytes) -> list[border.Buffer]:
    """The response's bytes in pieces, none copied; `connection` is a whole header line or empty."""
    head = _status_line(response.status, response.content_type)
    length = sum(map(len, response.parts))
    return [b"%bContent-Length: %d\r\n%b%b\r\n" % (head, length, response.headers, connection), *response.parts]


def render_head(response: Response, connection: bytes) -> bytes:
    """The head of a response whose body comes in pieces; `connection` holds whole header lines."""
    return b"%b%b%b\r\n" % (_status_line(response.status, response.content_type), response.headers, connection)


@functools.cache
def _status_line(status: int, content_type: bytes) -> bytes:
    line = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n".encode()
    return line + b"Content-Type: " + content_type + b"\r\n" if content_type else line
