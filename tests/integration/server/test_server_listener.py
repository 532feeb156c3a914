"""The listener beside the API: metrics, and what probes ask."""

from __future__ import annotations

import http.client
import pathlib
import socket
import ssl

import prometheus_client
import pytest
import trustme

from tests.support import server as servers
from tms_server.model import errors
from tms_server.observability import listener

LOOPBACK = "127.0.0.1"


def ask(address: str, path: str, context: ssl.SSLContext | None = None) -> tuple[int, str]:
    """Status and text of what a listener answers."""
    if context is None:
        connection = http.client.HTTPConnection(address, timeout=servers.PATIENCE_S)
    else:
        connection = http.client.HTTPSConnection(address, timeout=servers.PATIENCE_S, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_readiness_follows_the_server_and_liveness_does_not() -> None:
    serving = [False]
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("tried", "Tries.", registry=registry).inc()
    with listener.serve(registry, listener.Address(LOOPBACK, 0), lambda: serving[0]) as address:
        assert [ask(address, path)[0] for path in ("/livez", "/readyz")] == [200, 503]
        serving[0] = True
        assert [ask(address, path)[0] for path in ("/livez", "/readyz?verbose")] == [200, 200]
        assert "tried_total 1.0" in ask(address, "/metrics")[1]
        assert ask(address, "/readyz/else")[0] == 404


def test_an_address_in_use_is_refused_by_its_name() -> None:
    registry = prometheus_client.CollectorRegistry()
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(errors.FailedPrecondition, match=f"{LOOPBACK}:{port}"),
            listener.serve(registry, listener.Address(LOOPBACK, port), lambda: True),
        ):
            pass


def test_who_never_shakes_hands_keeps_nobody_waiting(tmp_path: pathlib.Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert(LOOPBACK)
    chain, key = tmp_path / "server.pem", tmp_path / "server.key"
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    at = listener.Address(LOOPBACK, 0, certificate=chain, key=key)
    with listener.serve(prometheus_client.CollectorRegistry(), at, lambda: True) as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port))), socket.create_connection((host, int(port))) as rude:
            rude.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert ask(address, "/readyz", context)[0] == 200


async def test_a_server_is_ready_while_it_serves_and_not_when_it_stops(tmp_path: pathlib.Path) -> None:
    async with servers.running(tmp_path, with_sidecars=False, metrics={"enabled": True, "port": 0}) as server:
        address = server.bound.metrics
        assert ask(address, "/readyz")[0] == 200
        server.app.stop()
        # Asked from the server's own loop, which therefore cannot have ended yet.
        assert [ask(address, path)[0] for path in ("/readyz", "/livez")] == [503, 200]
