"""Where and how a gRPC front listens."""

from __future__ import annotations

import dataclasses
import pathlib

import grpc


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
