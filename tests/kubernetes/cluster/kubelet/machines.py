"""Nodes: registered as kubelets register them, with a lease renewed while they are there.

A lost node says nothing at all; what its pods do about that is their own affair, they watch `present`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import platform

import orjson
import structlog

from tests.kubernetes.cluster.kubelet import kube, times

PORT = 10250

_VERSION = "v1.36.3"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_LEASE_S = 40
_RETRY_S = 0.3

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a node offers."""

    name: str
    address: str
    cpu_milli: int
    memory_bytes: int
    pods: int
    resources: dict[str, int]
    labels: dict[str, str]
    taints: list[dict[str, str]]
    instant: bool

    def manifest(self) -> kube.Json:
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _architecture(),
        }
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels | self.labels},
            "spec": {"taints": self.taints, "providerID": f"fake://{self.name}"},
        }

    def status(self) -> kube.Json:
        amounts = {
            "cpu": f"{self.cpu_milli}m",
            "memory": str(self.memory_bytes),
            "ephemeral-storage": str(1 << 40),
            "pods": str(self.pods),
        } | {name: str(amount) for name, amount in self.resources.items()}
        return {
            "capacity": amounts,
            "allocatable": amounts,
            "addresses": [
                {"type": "InternalIP", "address": self.address},
                {"type": "Hostname", "address": self.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": PORT}},
            "nodeInfo": _node_info(self.name),
            "conditions": _conditions(),
        }


class Machine:
    """One node. `present` is set while it is not lost."""

    def __init__(self, client: kube.Client, shape: Shape, renew_s: float) -> None:
        self.shape = shape
        self.present = asyncio.Event()
        self.present.set()
        self._client = client
        self._renew_s = renew_s
        self._restored = asyncio.Event()

    async def register(self) -> None:
        """Makes the node, or takes over the one of this name, and says that it is ready."""
        try:
            await self._client.post("/api/v1/nodes", self.shape.manifest())
        except kube.ApiError as error:
            if error.status != 409:
                raise
        await self._renew()
        await self._report()

    def lose(self) -> None:
        self.present.clear()

    def restore(self) -> None:
        self.present.set()
        self._restored.set()

    def see(self, node: kube.Json) -> None:
        """Looks at the node as the API server has it: somebody may have written it off meanwhile."""
        if self.present.is_set() and not _is_ready(node):
            self._restored.set()

    async def run(self) -> None:
        """Keeps the lease, and mends the status when the node was written off."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_lease())
            group.create_task(self._keep_status())

    async def _keep_lease(self) -> None:
        while True:
            await self.present.wait()
            try:
                await self._renew()
            except (kube.ApiError, *kube.AWAY) as error:
                log.info("kubelet.lease_not_renewed", node=self.shape.name, error=repr(error))
                await times.pause(_RETRY_S)
                continue
            await times.pause(self._renew_s)

    async def _keep_status(self) -> None:
        while True:
            await self._restored.wait()
            self._restored.clear()
            try:
                await self._renew()
                await self._report()
            except (kube.ApiError, *kube.AWAY) as error:
                log.info("kubelet.node_not_reported", node=self.shape.name, error=repr(error))
                self._restored.set()
            await times.pause(_RETRY_S)

    async def _renew(self) -> None:
        spec = {"holderIdentity": self.shape.name, "leaseDurationSeconds": _LEASE_S, "renewTime": times.micro_stamp()}
        name = self.shape.name
        try:
            await self._client.patch(f"{_LEASES}/{name}", {"spec": spec})
        except kube.ApiError as error:
            if error.status != 404:
                raise
            await self._client.post(_LEASES, {"metadata": {"name": name}, "spec": spec})

    async def _report(self) -> None:
        await self._client.patch(f"/api/v1/nodes/{self.shape.name}/status", {"status": self.shape.status()})


def read(path: pathlib.Path) -> list[Shape]:
    return [Shape(**entry) for entry in orjson.loads(path.read_bytes())]


def _is_ready(node: kube.Json) -> bool:
    conditions = node.get("status", {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _conditions() -> list[kube.Json]:
    now = times.stamp()
    good = {"MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False", "Ready": "True"}
    return [
        {
            "type": kind,
            "status": status,
            "reason": "KubeletReady" if kind == "Ready" else f"KubeletHasNo{kind}",
            "message": "kubelet is posting ready status" if kind == "Ready" else f"kubelet has no {kind}",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        for kind, status in good.items()
    ]


def _node_info(name: str) -> dict[str, str]:
    return {
        "architecture": _architecture(),
        "operatingSystem": "linux",
        "kernelVersion": platform.release(),
        "kubeletVersion": _VERSION,
        "kubeProxyVersion": _VERSION,
        "containerRuntimeVersion": "fake://1.0",
        "osImage": "fake",
        "machineID": name,
        "systemUUID": name,
        "bootID": name,
    }


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
