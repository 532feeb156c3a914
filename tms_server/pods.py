"""The sections of the settings about Kubernetes: where workers run, and the shapes of their pods.

A lease names a shape, never a pod: what a pod may be is the administrator's decision. Reads nothing.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import pydantic
from pydantic import Field

from tms_server import sections

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
DEFAULT_PROFILE = "default"


class Cache(sections.Section):
    """Where a pod keeps fetched models."""

    kind: Literal["empty_dir", "host_path", "claim"] = Field(
        default="empty_dir", description="volume: of the pod, of the node (shared by its pods), or a claim"
    )
    path: str = Field(default="", description="folder on the node, for host_path")
    claim: str = Field(default="", description="name of the claim (ReadWriteMany where several pods use it)")
    size_bytes: int = Field(default=0, ge=0, description="bytes of the disk that it may take; 0: no bound")

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Cache:
        if self.kind == "host_path" and not self.path.startswith("/"):
            raise ValueError("path: an absolute folder is needed with kind host_path")
        if self.kind == "claim" and not self.claim:
            raise ValueError("claim: a name is needed with kind claim")
        return self


class Program(sections.Section):
    """A V2 server that leases and pools may name as their command, beside tms-worker."""

    image: str = Field(description="image that it runs in")
    command: tuple[str, ...] = Field(default=(), description="command; empty: the image's own entry point")
    args: tuple[str, ...] = Field(
        default=(), description="arguments; empty: those of tms-worker. $(POD_IP) is the pod's address"
    )


class Profile(sections.Section):
    """A shape of pods, by name; "default" is that of workers which name none."""

    gpu_resource: str = Field(
        default="nvidia.com/gpu", description="resource that counts devices, or slices as nvidia.com/mig-1g.10gb"
    )
    cpu_milli: int = Field(default=1000, ge=0, description="thousandths of a processor where a worker asks for none")
    most_gpus: int = Field(default=16, ge=0, description="most devices that a worker may ask for")
    memory_bytes: int = Field(
        default=0, ge=0, description="bytes that models may book where a worker asks for none; 0: workers.memory_bytes"
    )
    memory_overhead_bytes: int = Field(
        default=2**29, ge=0, description="main memory of a worker beside what models book"
    )
    host_memory_bytes: int = Field(
        default=8 * 2**30, ge=0, description="main memory of a worker whose models are on a device"
    )
    sidecar_cpu_milli: int = Field(default=50, ge=0, description="thousandths of a processor of the sidecar")
    sidecar_memory_bytes: int = Field(default=256 * 2**20, ge=0, description="main memory of the sidecar")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels that nodes must have")
    affinity: dict[str, Any] = Field(default_factory=dict, description="affinity, as in a pod")
    tolerations: tuple[dict[str, Any], ...] = Field(default=(), description="tolerations, as in a pod")
    topology_spread: tuple[dict[str, Any], ...] = Field(
        default=(), description="topologySpreadConstraints, as in a pod; the selector is added"
    )
    runtime_class: str = Field(default="", description="runtimeClassName")
    priority_class: str = Field(default="", description="priorityClassName")
    image_pull_secrets: tuple[str, ...] = Field(default=(), description="names of pull secrets")
    labels: dict[str, str] = Field(default_factory=dict, description="further labels of pods")
    annotations: dict[str, str] = Field(default_factory=dict, description="further annotations of pods")
    environment: dict[str, str] = Field(default_factory=dict, description="further variables of both containers")
    cache: Cache = Field(default=Cache(), description="where fetched models are kept")
    user_id: int | None = Field(default=65532, ge=1, description="user of both containers; none: the image's own")
    group_id: int | None = Field(default=65532, ge=1, description="group of both containers and of their volumes")
    service_account: str = Field(default="", description="service account of pods; empty: the namespace's default")
    token_audience: str = Field(
        default="", description="audience of a projected token for model stores; empty: no token in the pod"
    )
    start_bound_s: int = Field(
        default=300, ge=1, le=86400, description="seconds after which a worker that does not answer is started anew"
    )
    termination_grace_s: int = Field(default=60, ge=1, le=3600, description="seconds that a pod has to finish")
    lost_node_s: int = Field(default=15, ge=0, le=3600, description="seconds until pods of a lost node are replaced")


class Kubernetes(sections.Section):
    """Workers as pods."""

    namespace: str = Field(
        default="",
        pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$",
        description="namespace of all workers; empty: the server's own",
    )
    kubeconfig: str = Field(default="", description="file to reach the API server; empty: the pod's own account")
    context: str = Field(default="", description="context in that file; empty: the current one")
    dial: str = Field(default="", description="HOST:PORT that sidecars dial; empty: api.dial_host and api.port")
    worker_image: str = Field(default="", description="image of workers that name none")
    sidecar_image: str = Field(default="", description="image of the sidecar")
    ca_config_map: str = Field(
        default="", description="ConfigMap whose ca.crt sidecars check the server with; kept by itself with tls.managed"
    )
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = Field(
        default="", description="imagePullPolicy; empty: Kubernetes' own rule"
    )
    watch_nodes: bool = Field(
        default=False, description="read nodes: moves leases off cordoned ones and warns of shapes that match none"
    )
    strict: bool = Field(
        default=False, description="refuse a shape that no node matches now, instead of a warning; needs watch_nodes"
    )
    drain_timeout_s: float = Field(
        default=600.0, gt=0, description="seconds after which pods on a cordoned node are stopped, moved or not"
    )
    settle_s: float = Field(
        default=1.0, ge=0, le=60, description="seconds between the end of new connections to a pod and its unload"
    )
    connection_age_s: float = Field(
        default=10.0, ge=1, le=3600, description="seconds after which a worker lets a client connect anew"
    )
    writes_per_s: float = Field(default=200.0, gt=0, description="most writes to the API server per second")
    programs: dict[str, Program] = Field(default_factory=dict, description="further servers by name")
    profiles: dict[str, Profile] = Field(default_factory=dict, description="shapes of pods by name")

    @pydantic.field_validator("profiles")
    @classmethod
    def _names(cls, value: dict[str, Profile]) -> dict[str, Profile]:
        for name in value:
            if not _LABEL.fullmatch(name):
                raise ValueError(f"{name!r}: a name is 1 to 63 of [a-z0-9-]")
        return value

    @pydantic.model_validator(mode="after")
    def _strict_needs_nodes(self) -> Kubernetes:
        if self.strict and not self.watch_nodes:
            raise ValueError("strict needs watch_nodes: without reading nodes nothing is known of them")
        return self


class MetricsApi(sections.Section):
    """external.metrics.k8s.io, served for HorizontalPodAutoscalers."""

    enabled: bool = Field(default=False, description="serve the metrics API; only with backend = kubernetes")
    address: str = Field(default="0.0.0.0", description="address that it listens on")  # noqa: S104 - the API server dials the pod
    port: int = Field(default=30347, ge=0, le=65535, description="its port; 0 takes a free one")
    service: str = Field(default="tms-server", description="Service that leads to it, for certificate and APIService")
    register_service: bool = Field(
        default=True, description="keep the APIService: its certificate, and the object itself where there is none"
    )
