"""What the administrator decides about pods. Frozen; nothing a lease says ever changes it.

A lease or a pool names a profile, and a program by its name or an image of its own; everything else of a pod is said here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from tms_server.model import ids

MIB, GIB = 2**20, 2**30
DEFAULT_PROFILE = "default"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")

Tree = Mapping[str, Any]
"""A part of a pod as Kubernetes spells it."""

WORKER_ARGS = (
    "--model-repository=/tms/models",
    "--model-control-mode=explicit",
    "--http-address=$(POD_IP)",
    "--grpc-address=$(POD_IP)",
    "--metrics-address=$(POD_IP)",
    "--control-token-file=/tms/token/token",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What runs as the worker. Kubernetes fills ``$(POD_IP)`` and ``$(POD_NAME)``; no command: the image's own."""

    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = WORKER_ARGS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Where sidecars keep models: a claim by name, a folder of the node, or else a volume of the pod's own."""

    size_bytes: int = 0
    """Bound of the pod's own volume; 0: the node's disk."""
    host_path: str = ""
    claim: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Models that lie in a claim or on the nodes: sidecars find them at `path`, to be read."""

    path: str
    claim: str = ""
    host_path: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A named shape of pods. Zero, empty or None leaves a thing to Kubernetes."""

    gpu_resource: str = ""
    """Such as nvidia.com/gpu or nvidia.com/mig-1g.10gb; empty: pods without devices."""
    most_gpus: int = 16
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    affinity: Tree = dataclasses.field(default_factory=dict)
    tolerations: tuple[Tree, ...] = ()
    topology_spread: tuple[Tree, ...] = ()
    runtime_class: str = ""
    priority_class: str = ""
    image_pull_policy: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Given to both containers."""
    cache: Cache = Cache()
    termination_grace_s: int = 60
    start_bound_s: int = 300
    """A worker that does not answer after so long is started anew."""
    lost_node_s: int = 30
    """Pods of a node that is gone are replaced after so long."""
    cpu_milli: int = 0
    """Reserved for a worker that asks for none."""
    memory_bytes: int = 0
    """What models may book where a worker asks for none; 0: the options' default."""
    memory_overhead_bytes: int = GIB // 2
    """Beside what models may book: the worker's own memory and that of requests."""
    host_memory_bytes: int = 0
    """Memory of the container of a worker with devices; 0: what models may book and the overhead."""
    service_account: str = ""
    token_audience: str = ""
    """Sidecars get a token for this audience, at /tms/store-token/token: for stores, never for Kubernetes."""
    user_id: int | None = 65532
    group_id: int | None = 65532
    sidecar_cpu_milli: int = 50
    sidecar_memory_bytes: int = 256 * MIB


def _profiles() -> Mapping[str, Profile]:
    return {DEFAULT_PROFILE: Profile()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of the Kubernetes backend; ValueError names the one that could not work."""

    namespace: str
    """Of Kubernetes; holds all workers of the installation."""
    installation_id: ids.InstallationId
    dial: str
    """HOST:PORT where sidecars find the server."""
    sidecar_image: str
    programs: Mapping[str, Program]
    default_program: str = "tms-worker"
    ca_config_map: str = ""
    """ConfigMap with the CA of the server's certificate, as ``ca.crt``; empty: no TLS."""
    profiles: Mapping[str, Profile] = dataclasses.field(default_factory=_profiles)
    folders: tuple[Folder, ...] = ()
    default_memory_bytes: int = 4 * GIB
    margin_bytes: int = 0
    """Kept free of models on each worker."""
    connection_age_s: float = 10.0
    """Workers let clients connect anew after so long, so that they follow what moves; drains wait for it."""
    watch_nodes: bool = True
    """Read nodes, where that is allowed."""
    strict: bool = False
    """Refuse what no node of now could run, instead of warning."""
    drain_timeout_s: float = 300.0
    """Pods that could not be moved off a cordoned node are deleted after so long."""
    settle_s: float = 1.0
    """Time that proxies have to follow once a pod was taken out of a Service."""
    sync_bound_s: float = 30.0
    """The first look at the cluster takes no longer, else opening fails."""
    requests_at_once: int = 32
    writes_per_s: float = 0.0
    """Bound of writes; 0: as many as the API server takes."""

    def __post_init__(self) -> None:
        """Refuses what Kubernetes would refuse later, for every object."""
        if not _LABEL.fullmatch(self.installation_id):
            raise ValueError("installation_id: 1 to 48 of [a-z0-9-], first and last a letter or digit")
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", self.namespace):
            raise ValueError("namespace: not the name of a Kubernetes namespace")
        if self.default_program not in self.programs:
            raise ValueError(f"default_program: {self.default_program!r} is not one of {', '.join(self.programs)}")
        if DEFAULT_PROFILE not in self.profiles:
            raise ValueError(f"profiles: the profile {DEFAULT_PROFILE!r} is missing")
        if self.strict and not self.watch_nodes:
            raise ValueError("strict: needs watch_nodes, for without reading nodes nothing is known of them")
        if self.margin_bytes < 0 or self.default_memory_bytes <= self.margin_bytes:
            raise ValueError("default_memory_bytes: must exceed margin_bytes, which must not be negative")
        if self.requests_at_once < 1 or self.writes_per_s < 0:
            raise ValueError("requests_at_once: at least 1; writes_per_s: not negative")
        for name, profile in self.profiles.items():
            if bool(profile.cache.host_path) and bool(profile.cache.claim):
                raise ValueError(f"profiles[{name}].cache: give host_path or claim, not both")
