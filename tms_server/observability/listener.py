"""Serves the metrics over HTTP, in threads of its own, with the server's TLS."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import prometheus_client

from tms_server.model import errors


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 takes a free one. With `client_ca` clients must show a certificate."""

    host: str
    port: int
    certificate: pathlib.Path | None = None
    key: pathlib.Path | None = None
    client_ca: pathlib.Path | None = None


@contextlib.contextmanager
def serve(registry: prometheus_client.CollectorRegistry, at: Address) -> Iterator[str]:
    """Serves while the block runs; yields HOST:PORT. FailedPrecondition when the address cannot be had."""
    try:
        server, thread = prometheus_client.start_http_server(
            at.port,
            at.host,
            registry,
            certfile=_text(at.certificate),
            keyfile=_text(at.key),
            client_cafile=_text(at.client_ca),
            client_auth_required=at.client_ca is not None,
        )
    except (OSError, ValueError) as error:
        raise errors.FailedPrecondition(f"cannot serve metrics on {at.host}:{at.port}: {error}") from error
    try:
        yield f"{at.host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _text(path: pathlib.Path | None) -> str | None:
    return str(path) if path is not None else None
