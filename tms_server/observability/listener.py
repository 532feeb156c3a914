"""Serves the metrics over HTTP, and whether the server lives and serves, in threads of its own, with the server's TLS.

A caller that is slow, silent or fails to shake hands keeps its own thread waiting, for a bounded time, and nobody else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http
import http.server
import pathlib
import socket
import ssl
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import prometheus_client

from tms_server.model import errors

_TEXT = "text/plain; charset=utf-8"


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 takes a free one. With `client_ca` clients must show a certificate."""

    host: str
    port: int
    certificate: pathlib.Path | None = None
    key: pathlib.Path | None = None
    client_ca: pathlib.Path | None = None


@contextlib.contextmanager
def serve(registry: prometheus_client.CollectorRegistry, at: Address, serves: Callable[[], bool]) -> Iterator[str]:
    """Serves while the block runs; yields HOST:PORT. FailedPrecondition when the address cannot be had.

    /metrics has the registry; /livez answers 200; /readyz 200 while `serves` (called in any thread) says so, else 503.
    """
    try:
        server = _Listener(at, registry, serves)
    except (OSError, ValueError, OverflowError) as error:
        raise errors.FailedPrecondition(f"cannot serve metrics on {at.host}:{at.port}: {error}") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"{at.host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(prometheus_client.MetricsHandler):
    """One connection."""

    timeout = 10
    server: _Listener

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        """Answers what the path asks for."""
        path = urllib.parse.urlsplit(self.path).path
        if path in {"/", "/metrics"}:
            self.registry = self.server.registry
            super().do_GET()
        elif path == "/livez":
            self._say(http.HTTPStatus.OK, "alive")
        elif path == "/readyz" and self.server.serves():
            self._say(http.HTTPStatus.OK, "serving")
        elif path == "/readyz":
            self._say(http.HTTPStatus.SERVICE_UNAVAILABLE, "starting or stopping")
        else:
            self._say(http.HTTPStatus.NOT_FOUND, "there are /metrics, /livez and /readyz")

    def _say(self, status: http.HTTPStatus, word: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", _TEXT)
        self.end_headers()
        self.wfile.write(f"{word}\n".encode())


class _Listener(http.server.ThreadingHTTPServer):
    """The socket, with TLS where there is a certificate."""

    daemon_threads = True

    def __init__(self, at: Address, registry: prometheus_client.CollectorRegistry, serves: Callable[[], bool]) -> None:
        self.address_family = socket.AF_INET6 if ":" in at.host else socket.AF_INET
        self.registry = registry
        self.serves = serves
        self._at = at
        self._read = _stamps(at)
        self._context = _context(at)
        super().__init__((at.host, at.port), _Handler)
        if self._context is not None:
            # The handshake happens at the first read, in the connection's own thread.
            self.socket = self._context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def get_request(self) -> tuple[Any, Any]:
        """The next connection, with the certificate as it is on disk now."""
        with contextlib.suppress(OSError):  # what was read before holds
            stamps = _stamps(self._at)
            if self._context is not None and stamps != self._read:
                _load(self._context, self._at)
                self._read = stamps
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent about connections that break; anything else is the server's own fault."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _context(at: Address) -> ssl.SSLContext | None:
    if at.certificate is None or at.key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, at)
    if at.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(context: ssl.SSLContext, at: Address) -> None:
    if at.certificate is not None:
        context.load_cert_chain(at.certificate, at.key)
    if at.client_ca is not None:
        context.load_verify_locations(at.client_ca)


def _stamps(at: Address) -> tuple[tuple[int, int], ...]:
    """Change when the files do."""
    found = (each.stat() for each in (at.certificate, at.key, at.client_ca) if each is not None)
    return tuple((each.st_mtime_ns, each.st_ino) for each in found)
