"""The listener of the gRPC front: services, channel options, TLS, drain."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gpu_worker.engine import border
from gpu_worker.grpc import health, servicer
from gpu_worker.wire import control as wire_control
from gpu_worker.wire import intake as wire_intake
from protos.inference.v2 import predict_pb2, predict_pb2_grpc

_UNLIMITED = -1
_QUIET_S = 0.25
# gRPC's core adds up to a tenth to each connection's age.
_AGE_SPREAD = 1.2


@dataclasses.dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files; a root certificate with `mutual` asks clients for theirs."""

    certificate: pathlib.Path
    key: pathlib.Path
    root: pathlib.Path | None = None
    mutual: bool = False

    def credentials(self) -> grpc.ServerCredentials:
        """OSError when a file cannot be read."""
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        root = self.root.read_bytes() if self.root else None
        return grpc.ssl_server_credentials([pair], root_certificates=root, require_client_auth=self.mutual)


@dataclasses.dataclass(frozen=True, slots=True)
class Listen:
    """Where and how to listen; port 0 takes a free one. `arguments` are channel arguments of gRPC's core."""

    address: str
    port: int
    tls: Tls | None = None
    reuse_port: bool = False
    arguments: tuple[tuple[str, int], ...] = ()
    compression: grpc.Compression = grpc.Compression.NoCompression

    @property
    def age_s(self) -> float:
        """How old a connection may become; 0 for any age."""
        return dict(self.arguments).get("grpc.max_connection_age_ms", 0) / 1000


class Server:
    """Made, started, drained and closed on one event loop."""

    def __init__(
        self,
        engine: border.Engine,
        intake: wire_intake.Intake,
        listen: Listen,
        control: wire_control.Control = wire_control.OPEN,
    ) -> None:
        self._listen = listen
        self._intake = intake
        self._health = health.Health(engine)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _UNLIMITED),
                ("grpc.max_send_message_length", _UNLIMITED),
                ("grpc.so_reuseport", int(listen.reuse_port)),
                *listen.arguments,
            ]
        )
        service = servicer.Servicer(engine, intake, listen.compression, control)
        # The generated servicer types demand contexts that are synchronous and asynchronous at once.
        predict_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, self._server)  # type: ignore[arg-type]  # see above
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)  # type: ignore[arg-type]  # see above
        names = (
            predict_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
            "grpc.health.v1.Health",
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Listens; returns the bound port. OSError when the address or the TLS files cannot be had."""
        target = f"{_bracketed(self._listen.address)}:{self._listen.port}"
        try:
            if self._listen.tls:
                port = self._server.add_secure_port(target, self._listen.tls.credentials())
            else:
                port = self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise OSError(f"cannot listen for gRPC on {target}: {error}") from error
        await self._server.start()
        return port

    async def stop(self, grace_s: float) -> None:
        """Stops accepting, tells clients to go, and gives calls in flight `grace_s` to finish.

        Calls that arrive in the very moment of stopping are lost. So where connections have an age, it is awaited
        first, for as long as inferences come: their clients go elsewhere unharmed.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + grace_s
        self._health.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(grace_s, self._listen.age_s * _AGE_SPREAD)):
                await self._intake.quiet(_QUIET_S)
        await self._server.stop(max(0.0, until_s - loop.time()))


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
