"""What a worker is and reserves, and the addresses it answers on."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Whole devices, thousandths of a processor, bytes that models may book. 0: the administrator's default."""

    gpus: int = 0
    cpu_milli: int = 0
    memory_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What runs as a worker: a container image, or a command by its name on the administrator's allow-list.

    `profile` names one of the administrator's pod shapes, on backends that run pods.
    """

    command: str = ""
    image: str = ""
    resources: Resources = Resources()
    profile: str = ""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """Address of a V2 server: HTTP, gRPC and metrics ports on one host."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
