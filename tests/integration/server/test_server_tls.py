"""TLS and mutual TLS on both listeners, with certificates made on the spot."""

from __future__ import annotations

import asyncio
import pathlib
import ssl
import urllib.error
import urllib.request

import grpc
import pytest
import trustme

from protos.tms.v1 import lease_pb2, lease_pb2_grpc
from tests.support import server as servers


class Certificates:
    """A CA, a server's certificate and a client's, as files."""

    def __init__(self, folder: pathlib.Path) -> None:
        ca = trustme.CA()
        server, client = ca.issue_cert("127.0.0.1"), ca.issue_cert("ci@example.org", common_name="ci")
        self.ca, self.chain, self.key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
        self.client, self.client_key = folder / "client.pem", folder / "client.key"
        ca.cert_pem.write_to_path(self.ca)
        server.cert_chain_pems[0].write_to_path(self.chain)
        server.private_key_pem.write_to_path(self.key)
        client.cert_chain_pems[0].write_to_path(self.client)
        client.private_key_pem.write_to_path(self.client_key)

    def tls(self, *, mutual: bool) -> dict[str, pathlib.Path]:
        """Settings of the server."""
        one_sided = {"certificate": self.chain, "key": self.key, "ca": self.ca}
        more = {"client_ca": self.ca, "sidecar_certificate": self.client, "sidecar_key": self.client_key}
        return {**one_sided, **(more if mutual else {})}

    def credentials(self, *, with_client: bool) -> grpc.ChannelCredentials:
        ca = self.ca.read_bytes()
        if not with_client:
            return grpc.ssl_channel_credentials(ca)
        return grpc.ssl_channel_credentials(ca, self.client_key.read_bytes(), self.client.read_bytes())


@pytest.fixture
def certificates(tmp_path: pathlib.Path) -> Certificates:
    return Certificates(tmp_path)


async def create(channel: grpc.aio.Channel) -> lease_pb2.Lease:
    async with channel:
        request = lease_pb2.CreateLeaseRequest(models=[servers.model("one")])
        return await lease_pb2_grpc.LeasesStub(channel).Create(request, timeout=servers.PATIENCE_S)


def fetch(url: str, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(url, context=context, timeout=servers.PATIENCE_S) as answer:
        text: str = answer.read().decode()
    return text


async def test_tls_serves_who_trusts_it_and_nobody_in_the_clear(
    tmp_path: pathlib.Path, certificates: Certificates
) -> None:
    async with servers.running(tmp_path, with_sidecars=False, tls=certificates.tls(mutual=False)) as server:
        secure = grpc.aio.secure_channel(server.address, certificates.credentials(with_client=False))
        assert (await create(secure)).id
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(grpc.aio.insecure_channel(server.address))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_names_the_caller_and_turns_strangers_away(
    tmp_path: pathlib.Path, certificates: Certificates
) -> None:
    async with servers.running(tmp_path, with_sidecars=False, tls=certificates.tls(mutual=True)) as server:
        known = grpc.aio.secure_channel(server.address, certificates.credentials(with_client=True))
        stub = lease_pb2_grpc.LeasesStub(known)
        made = await stub.Create(lease_pb2.CreateLeaseRequest(models=[servers.model("one")]))
        events = (await stub.ListEvents(lease_pb2.ListEventsRequest(lease=made.id))).events
        assert "ci" in events[0].actor
        await known.close()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(grpc.aio.secure_channel(server.address, certificates.credentials(with_client=False)))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_metrics_are_served_with_the_same_tls(tmp_path: pathlib.Path, certificates: Certificates) -> None:
    metrics, tls = {"enabled": True, "port": 0}, certificates.tls(mutual=True)
    async with servers.running(tmp_path, with_sidecars=False, metrics=metrics, tls=tls) as server:
        url = f"https://{server.bound.metrics}/metrics"
        context = ssl.create_default_context(cafile=str(certificates.ca))
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(fetch, url, context)
        context.load_cert_chain(certificates.client, certificates.client_key)
        assert "tms_pass_seconds" in await asyncio.to_thread(fetch, url, context)


async def test_metrics_count_calls_leases_and_bytes(tmp_path: pathlib.Path) -> None:
    async with servers.running(tmp_path, metrics={"enabled": True, "port": 0}) as server:
        active = await server.active(servers.model("one", declared_bytes=12_345))
        await server.active(servers.model("two", declared_bytes=1))
        url = f"http://{server.bound.metrics}/metrics"
        text = await asyncio.to_thread(fetch, url)
        assert active.worker_group not in text
        for line in (
            'tms_rpcs_total{code="OK",method="/tms.v1.Leases/Create"} 2.0',
            "tms_leases_created_total 2.0",
            "tms_placements_total 2.0",
            "tms_lease_to_active_seconds_count 2.0",
            'tms_capacity_bytes{namespace="default",pool="default"}',
        ):
            assert line in text, line


async def test_certificates_that_are_renewed_on_disk_are_shown_from_the_next_connection_on(
    tmp_path: pathlib.Path, certificates: Certificates
) -> None:
    metrics = {"enabled": True, "port": 0}
    tls = certificates.tls(mutual=False)
    async with servers.running(tmp_path, with_sidecars=False, tls=tls, metrics=metrics) as server:
        url = f"https://{server.bound.metrics}/livez"
        old = certificates.credentials(with_client=False), ssl.create_default_context(cafile=certificates.ca)
        assert await asyncio.to_thread(fetch, url, old[1])
        Certificates(tmp_path)  # of another authority, in the same files
        new = certificates.credentials(with_client=False), ssl.create_default_context(cafile=certificates.ca)
        assert (await create(grpc.aio.secure_channel(server.address, new[0]))).id
        assert await asyncio.to_thread(fetch, url, new[1])
        with pytest.raises(grpc.aio.AioRpcError):
            await create(grpc.aio.secure_channel(server.address, old[0]))
        with pytest.raises(urllib.error.URLError):
            await asyncio.to_thread(fetch, url, old[1])
