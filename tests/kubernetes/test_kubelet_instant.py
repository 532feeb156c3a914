"""Instant nodes of the fake kubelet: thousands of pods without a process. A kubelet of its own stands beside the
cluster's, with nodes that take only the pods that name them."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import json
import pathlib
import sys
import tempfile

import pytest

from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import supervisor
from tests.kubernetes.cluster.kubelet import faults as kubelet_faults
from tests.kubernetes.cluster.kubelet import kube

_NODE = "instant-1"
_PODS = 400  # more than a /24 has addresses for
_LIMIT_S = 90.0


@pytest.fixture
async def client(cluster: cluster_client.Cluster) -> collections.abc.AsyncIterator[kube.Client]:
    result = kube.Client.load(cluster.kubeconfig)
    yield result
    await result.close()


@pytest.fixture
async def faults(
    cluster: cluster_client.Cluster, client: kube.Client
) -> collections.abc.AsyncIterator[kubelet_faults.Faults]:
    with tempfile.TemporaryDirectory(prefix="tms-kubelet-") as folder:
        directory = pathlib.Path(folder)  # short: a socket lies there
        (directory / "pki").symlink_to(cluster.layout.pki)
        (directory / "nodes.json").write_text(json.dumps([_node()]))
        process = await asyncio.create_subprocess_exec(
            *supervisor.DIE_WITH_PARENT,
            *(sys.executable, "-m", "tests.kubernetes.cluster.kubelet", "--nodes", str(directory / "nodes.json")),
            *("--kubeconfig", str(cluster.kubeconfig), "--directory", str(directory)),
        )
        try:
            yield kubelet_faults.Faults(directory)
        finally:
            process.terminate()
            await process.wait()
            await client.delete(f"/api/v1/nodes/{_NODE}")


def _node() -> kube.Json:
    return {
        "name": _NODE,
        "address": "10.244.240.1",
        "cpu_milli": 1_000_000,
        "memory_bytes": 1 << 40,
        "pods": 5_000,
        "resources": {"nvidia.com/gpu": 1_000},
        "labels": {},
        "taints": [{"key": "test", "value": "", "effect": "NoSchedule"}],
        "instant": True,
    }


class _Watched:
    """The pods of a namespace as a watch tells them."""

    def __init__(self) -> None:
        self.pods: dict[str, kube.Json] = {}
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def following(self, client: kube.Client, path: str) -> collections.abc.AsyncIterator[None]:
        mirror = kube.Mirror(client, path, self._see, self._lose)
        task = asyncio.create_task(mirror.run())
        try:
            yield
        finally:
            task.cancel()

    async def until(self, good: collections.abc.Callable[[], bool]) -> None:
        async with asyncio.timeout(_LIMIT_S), self._changed:
            await self._changed.wait_for(good)

    def _see(self, pod: kube.Json) -> None:
        self.pods[pod["metadata"]["name"]] = pod
        self._tell()

    def _lose(self, pod: kube.Json) -> None:
        self.pods.pop(pod["metadata"]["name"], None)
        self._tell()

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._task = asyncio.create_task(tell())

    def ready(self) -> list[str]:
        return [name for name, pod in self.pods.items() if _is_ready(pod)]


def _is_ready(pod: kube.Json) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _pod(number: int) -> kube.Json:
    sidecar = {"name": "sidecar", "image": "tms/sidecar", "restartPolicy": "Always"}
    return {
        "metadata": {"name": f"pod-{number}"},
        "spec": {
            "nodeName": _NODE,
            "automountServiceAccountToken": False,
            "initContainers": [sidecar],
            "containers": [{"name": "worker", "image": "tms/worker"}],
        },
    }


async def _for_each(call: collections.abc.Callable[[int], collections.abc.Awaitable[object]]) -> None:
    """Calls for each pod, twenty at a time."""
    for first in range(0, _PODS, 20):
        await asyncio.gather(*map(call, range(first, first + 20)))


async def test_many_pods_are_ready_at_once_each_at_its_own_address_and_go_at_once(
    client: kube.Client, faults: kubelet_faults.Faults, namespace: str
) -> None:
    path, watched = f"/api/v1/namespaces/{namespace}/pods", _Watched()
    async with watched.following(client, path):
        await _for_each(lambda number: client.post(path, _pod(number)))
        await watched.until(lambda: len(watched.ready()) == _PODS)
        addresses = {pod["status"]["podIP"] for pod in watched.pods.values()}
        assert len(addresses) == _PODS
        assert {pod["status"]["phase"] for pod in watched.pods.values()} == {"Running"}
        await _for_each(lambda number: client.delete(f"{path}/pod-{number}"))
        await watched.until(lambda: not watched.pods)


async def test_faults_reach_instant_pods_too(
    client: kube.Client, faults: kubelet_faults.Faults, namespace: str
) -> None:
    path, watched = f"/api/v1/namespaces/{namespace}/pods", _Watched()
    async with watched.following(client, path):
        await client.post(path, _pod(0))
        await watched.until(lambda: watched.ready() == ["pod-0"])
        faults.hold_readiness(f"{namespace}/pod-0")
        await watched.until(lambda: not watched.ready())
        faults.release_readiness(f"{namespace}/pod-0")
        await watched.until(lambda: watched.ready() == ["pod-0"])
        faults.evict(f"{namespace}/pod-0", "no room")
        await watched.until(lambda: watched.pods["pod-0"]["status"]["phase"] == "Failed")
        assert watched.pods["pod-0"]["status"]["reason"] == "Evicted"
