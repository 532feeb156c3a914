"""An HTTP store in bad weather: it serves real files, and each request may be told to go wrong in its own way."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator

from sidecar import values

Wrong = Callable[["Handler", bytes], None]
"""Answers a request for a file with these bytes in some wrong way."""


class Store:
    """Files by path, and what goes wrong next: each request takes the first of `weather`, if there is one."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.weather: list[Wrong | None] = []
        self.asked: list[tuple[str, str, str]] = []
        """Path, Range and Authorization of each request."""
        self.sent_bytes = 0
        self.ranges = True
        self.wanted_authorization = ""
        self.released = threading.Event()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.store = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def put(self, path: str, data: bytes) -> values.SourceFile:
        self.files[f"/models/m/{path}"] = data
        return values.SourceFile(path=path, size_bytes=len(data), version=tag(data))

    def model(self, *files: values.SourceFile, authorization: str = "") -> values.Model:
        access = values.HttpAccess(authorization=authorization)
        return values.Model(name="m", uri=f"{self.url}/models/m", files=files, source_digest="d", access=access)

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(http.server.ThreadingHTTPServer):
    store: Store

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes is no trouble of the server."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        store = self.server.store
        asked = (self.path, self.headers.get("Range", ""), self.headers.get("Authorization", ""))
        with store.lock:
            store.asked.append(asked)
            wrong = store.weather.pop(0) if store.weather else None
        data = store.files.get(self.path)
        if data is None:
            return self.answer(404)
        if store.wanted_authorization and asked[2] != store.wanted_authorization:
            return self.answer(401)
        if self.headers.get("If-Match", tag(data)) != tag(data):
            return self.answer(412)
        if wrong is not None:
            return wrong(self, data)
        return self.good(data)

    def good(self, data: bytes) -> None:
        start, end = self.span(data)
        if (start, end) == (0, len(data)) and not (self.headers.get("Range") and self.server.store.ranges):
            self.answer(200, data)
        else:
            self.answer(206, data[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def span(self, data: bytes) -> tuple[int, int]:
        """What is asked for, of a store that knows ranges."""
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked or not self.server.store.ranges:
            return 0, len(data)
        first, _dash, last = asked.partition("-")
        return int(first), min(int(last) + 1, len(data))

    def answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        data = self.server.store.files.get(self.path, b"")
        said = {"ETag": tag(data), "Content-Length": str(len(body) if length is None else length), **(headers or {})}
        self.send_response(status)
        for name, value in said.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        with self.server.store.lock:
            self.server.store.sent_bytes += len(body)

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@functools.lru_cache(maxsize=4)
def tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


# What may go wrong.


def cut_after(size_bytes: int) -> Wrong:
    def wrong(handler: Handler, data: bytes) -> None:
        start, end = handler.span(data)
        body = data[start:end]
        ranged = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"} if handler.server.store.ranges else {}
        handler.answer(206 if ranged else 200, body[:size_bytes], ranged, length=len(body))
        handler.hang_up()

    return wrong


def status(code: int, **headers: str) -> Wrong:
    def wrong(handler: Handler, data: bytes) -> None:
        handler.answer(code, b"no", {name.replace("_", "-"): value for name, value in headers.items()})

    return wrong


def silent(handler: Handler, data: bytes) -> None:
    """Says nothing until the test ends."""
    handler.server.store.released.wait()
    handler.hang_up()


def stalled(handler: Handler, data: bytes) -> None:
    """Stops in the middle."""
    start, end = handler.span(data)
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
    handler.answer(206, data[start : (start + end) // 2], headers, length=end - start)
    handler.server.store.released.wait()
    handler.hang_up()


def longer(handler: Handler, data: bytes) -> None:
    handler.answer(200, data + b"more")


def unmeasured(handler: Handler, data: bytes) -> None:
    """More than the file, without a length: until the connection ends."""
    handler.send_response(200)
    handler.send_header("ETag", tag(data))
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(data + b"more")
    handler.hang_up()


def other_range(handler: Handler, data: bytes) -> None:
    """The right number of bytes from another place."""
    start, end = handler.span(data)
    handler.answer(206, data[start:end], {"Content-Range": f"bytes {start + 1}-{end}/{len(data)}"})


def other_total(handler: Handler, data: bytes) -> None:
    start, end = handler.span(data)
    handler.answer(206, data[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(data) + 7}"})


def other_version(handler: Handler, data: bytes) -> None:
    """Ignores the condition, as some stores do."""
    start, end = handler.span(data)
    headers = {"ETag": '"other"', "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
    handler.answer(206, data[start:end], headers)


def coded(handler: Handler, data: bytes) -> None:
    handler.answer(200, data, {"Content-Encoding": "gzip"})


def nonsense(handler: Handler, data: bytes) -> None:
    handler.wfile.write(b"\x00\xff this is no HTTP\r\n\r\n")
    handler.hang_up()


def to(location: str) -> Wrong:
    return status(302, Location=location)


@contextlib.contextmanager
def running() -> Iterator[Store]:
    store = Store()
    try:
        yield store
    finally:
        store.close()
