"""The gRPC server: listener, TLS, health, reflection, services. Ends gracefully."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.tms.v1 import agent_pb2, agent_pb2_grpc, lease_pb2, lease_pb2_grpc, pool_pb2, pool_pb2_grpc
from tms_server.api import fleet_servicers, interceptors, lease_servicers
from tms_server.model import errors
from tms_server.observability import metrics as metrics_module
from tms_server.services import agents, create, images, leases, names, pools, tunnels, watch, workers

MESSAGE_MAX_BYTES = 16 * 2**20
log = structlog.get_logger(__name__)
SERVICES = tuple(
    descriptor.services_by_name[name].full_name
    for descriptor, found in (
        (lease_pb2.DESCRIPTOR, ("Leases", "LeaseNames")),
        (pool_pb2.DESCRIPTOR, ("Pools", "Workers", "Images")),
        (agent_pb2.DESCRIPTOR, ("Agents",)),
    )
    for name in found
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files of a listener; with `client_ca` every client must show a certificate that it signed."""

    certificate: pathlib.Path
    key: pathlib.Path
    client_ca: pathlib.Path | None = None


Pair = tuple[str, str]
"""Certificate chain and key, as PEM."""

Shown = Callable[[], Pair]
"""Answers what new connections are shown; asked again for each of them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UseCases:
    """All that can be asked of the control plane."""

    creator: create.Creator
    leases: leases.Leases
    watcher: watch.Watcher
    names: names.Names
    tunnels: tunnels.Tunnels
    pools: pools.Pools
    workers: workers.Workers
    images: images.Images
    agents: agents.Agents


class Server:
    """Bound when made, so that its port is known before what needs it exists; serves from `start` on."""

    def __init__(self, host: str, port: int, tls: Tls | Shown | None, metrics: metrics_module.Metrics) -> None:
        """FailedPrecondition when the address cannot be bound or the files cannot be read."""
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ]
        self._server = grpc.aio.server(interceptors=[interceptors.Around(metrics)], options=options)
        self._health = health.aio.HealthServicer()
        self.host = host
        self.port = self._bind(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", tls)

    @property
    def address(self) -> str:
        """HOST:PORT where it listens."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def start(self, use_cases: UseCases) -> None:
        """Serves."""
        leases_ = lease_servicers.LeasesServicer(
            use_cases.creator, use_cases.leases, use_cases.watcher, use_cases.tunnels
        )
        lease_pb2_grpc.add_LeasesServicer_to_server(leases_, self._server)
        names_ = lease_servicers.LeaseNamesServicer(use_cases.names)
        lease_pb2_grpc.add_LeaseNamesServicer_to_server(names_, self._server)
        pool_pb2_grpc.add_PoolsServicer_to_server(fleet_servicers.PoolsServicer(use_cases.pools), self._server)
        workers_ = fleet_servicers.WorkersServicer(use_cases.workers)
        pool_pb2_grpc.add_WorkersServicer_to_server(workers_, self._server)
        pool_pb2_grpc.add_ImagesServicer_to_server(fleet_servicers.ImagesServicer(use_cases.images), self._server)
        agent_pb2_grpc.add_AgentsServicer_to_server(fleet_servicers.AgentsServicer(use_cases.agents), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        told = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(told, self._server)
        await self._server.start()
        for service in (*SERVICES, health.OVERALL_HEALTH):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls; those in flight have `grace_s` to end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    def _bind(self, address: str, tls: Tls | Shown | None) -> int:
        try:
            if tls is None:
                return self._server.add_insecure_port(address)
            credentials = _credentials(tls) if isinstance(tls, Tls) else changing(tls)
            return self._server.add_secure_port(address, credentials)
        except (RuntimeError, OSError) as error:
            raise errors.FailedPrecondition(f"cannot listen on {address}: {error}") from error


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    """Follows files that are renewed while the server runs."""

    def now() -> grpc.ServerCertificateConfiguration:
        client_ca = tls.client_ca.read_bytes() if tls.client_ca is not None else None
        return grpc.ssl_server_certificate_configuration(
            [(tls.key.read_bytes(), tls.certificate.read_bytes())], root_certificates=client_ca
        )

    def newest() -> grpc.ServerCertificateConfiguration | None:
        try:
            return now()
        except OSError as error:
            log.warning("tls.not_read", error=str(error))
            return None  # what was read before holds

    mutual = tls.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(now(), newest, mutual)  # type: ignore[arg-type]  # None is allowed


def changing(shown: Shown) -> grpc.ServerCredentials:
    """Follows a certificate that is renewed while the server runs."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        certificate, key = shown()
        return grpc.ssl_server_certificate_configuration([(key.encode(), certificate.encode())])

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration)
