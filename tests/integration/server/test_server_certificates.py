"""The API with a certificate that changes while it serves: clients that check it are answered before and after."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tms_server.api import server as server_module
from tms_server.metrics_api import issuing

NOW = dt.datetime.now(dt.UTC)  # noqa: TID251 - a TLS library looks at the real clock


@pytest.mark.parametrize("name", ["tms", "TMS", "localhost", "tms.tms-system.svc"])
async def test_clients_that_trust_the_authority_are_answered_under_every_name(name: str) -> None:
    bundle = issuing.issue((name, "localhost", "127.0.0.1"), NOW)
    shown = [bundle.serving]
    async with _serving(shown) as port:
        await _asked(port, bundle.trusted, name)
        renewed = issuing.renewed(bundle, (name, "localhost", "127.0.0.1", "more"), NOW)
        assert renewed.serving != bundle.serving
        shown[0] = renewed.serving
        await _asked(port, bundle.trusted, name)
        await _asked(port, renewed.trusted, "more")


async def test_clients_that_trust_another_are_not() -> None:
    mine, other = (issuing.issue(("localhost",), NOW) for _ in range(2))
    async with _serving([mine.serving]) as port:
        with pytest.raises(grpc.aio.AioRpcError):
            await _asked(port, other.trusted, "localhost")


@contextlib.asynccontextmanager
async def _serving(shown: list[issuing.Pair]) -> AsyncIterator[int]:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    credentials = server_module.changing(lambda: (shown[0].certificate, shown[0].key))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield port
    await server.stop(None)


async def _asked(port: int, trusted: str, name: str) -> None:
    credentials = grpc.ssl_channel_credentials(trusted.encode())
    options = [("grpc.ssl_target_name_override", name)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(  # type: ignore[attr-defined]  # stubs lack it
            health_pb2.HealthCheckRequest(service=""), timeout=20.0
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
