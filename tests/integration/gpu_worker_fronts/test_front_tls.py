"""TLS and mutual TLS of both fronts, with a certificate authority of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import ssl
from typing import Any

import grpc
import pytest
import trustme

from protos.inference.v2 import predict_pb2, predict_pb2_grpc


class Authority:
    """Files and contexts of one certificate authority."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.root = trustme.CA()
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        server = self.root.issue_cert("127.0.0.1")
        self.client = self.root.issue_cert("client@example.org")
        self.root.cert_pem.write_to_path(self.ca)
        server.private_key_pem.write_to_path(self.key)
        server.cert_chain_pems[0].write_to_path(self.cert)

    def context(self, *, with_certificate: bool) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.root.configure_trust(context)
        if with_certificate:
            self.client.configure_cert(context)
        return context

    def credentials(self, *, with_certificate: bool) -> grpc.ChannelCredentials:
        root = self.root.cert_pem.bytes()
        if not with_certificate:
            return grpc.ssl_channel_credentials(root)
        return grpc.ssl_channel_credentials(
            root, self.client.private_key_pem.bytes(), self.client.cert_chain_pems[0].bytes()
        )


@pytest.fixture(params=["native", "grpcio"])
def frontend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path)


async def http_live(port: int, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(60):
        raw = await reader.read()
    writer.close()
    return raw


async def grpc_live(port: int, credentials: grpc.ChannelCredentials) -> bool:
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        stub: Any = predict_pb2_grpc.GRPCInferenceServiceStub(channel)
        live: bool = (await stub.ServerLive(predict_pb2.ServerLiveRequest(), timeout=30)).live
        return live


@pytest.mark.slow  # a whole worker starts
async def test_tls_is_served_and_plain_clients_are_not(launch: Any, authority: Authority) -> None:
    worker = await launch(
        f"--http-tls-cert={authority.cert}",
        f"--http-tls-key={authority.key}",
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={authority.cert}",
        f"--grpc-server-key={authority.key}",
    )
    raw = await http_live(worker.ports["http"], authority.context(with_certificate=False))
    assert raw.startswith(b"HTTP/1.1 200 OK")
    assert await grpc_live(worker.ports["grpc"], authority.credentials(with_certificate=False))
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.ports["http"])
    writer.write(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(60):
        assert not (await reader.read()).startswith(b"HTTP/1.1")
    writer.close()


@pytest.mark.slow  # a whole worker starts
async def test_tls_without_http2_agreed_on_is_turned_away(launch: Any, authority: Authority) -> None:
    worker = await launch(
        "--grpc-use-ssl=true", f"--grpc-server-cert={authority.cert}", f"--grpc-server-key={authority.key}"
    )
    context = authority.context(with_certificate=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.ports["grpc"], ssl=context)
    with contextlib.suppress(ConnectionError):
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        async with asyncio.timeout(60):
            assert await reader.read() == b""
    writer.close()


@pytest.mark.slow  # a whole worker starts
async def test_mutual_tls_takes_only_clients_with_a_certificate(launch: Any, authority: Authority) -> None:
    worker = await launch(
        f"--http-tls-cert={authority.cert}",
        f"--http-tls-key={authority.key}",
        f"--http-tls-client-ca={authority.ca}",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={authority.cert}",
        f"--grpc-server-key={authority.key}",
        f"--grpc-root-cert={authority.ca}",
    )
    raw = await http_live(worker.ports["http"], authority.context(with_certificate=True))
    assert raw.startswith(b"HTTP/1.1 200 OK")
    assert await grpc_live(worker.ports["grpc"], authority.credentials(with_certificate=True))
    refused = b""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        refused = await http_live(worker.ports["http"], authority.context(with_certificate=False))
    assert refused == b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await grpc_live(worker.ports["grpc"], authority.credentials(with_certificate=False))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
