"""The contract of backends on a real API server, with pods that really run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import kubernetes
import pytest

from tests.contract import test_backend as contract
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster.kubelet import faults as faults_module
from tests.support import kubernetes_backend as support
from tms_server import clock
from tms_server.backends.kubernetes import backend as kubernetes_backend
from tms_server.backends.kubernetes import connect, names
from tms_server.model import ids, resources
from tms_server.ports import backend

# The suite as it is, with another harness below: pytest collects what a module holds.
globals().update({name: each for name, each in vars(contract).items() if name == "runs" or name.startswith("test_")})


class ClusterHarness:
    """One namespace of the test cluster."""

    refused: Mapping[str, resources.WorkerSpec] = contract.KubernetesHarness.refused

    def __init__(self, cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, namespace: str) -> None:
        self._cluster = cluster
        self._core = kubernetes.client.CoreV1Api(api)
        self._namespace = namespace
        self._faults = faults_module.Faults(cluster.directory)
        self._options = support.options(namespace, **support.stand_ins(self._faults))

    async def open(self) -> backend.Backend:
        connection = connect.Connection(kubeconfig=self._cluster.kubeconfig)
        return await kubernetes_backend.KubernetesBackend.open(self._options, connection, clock.SystemClock())

    async def kill_worker(self, group_id: ids.GroupId) -> None:
        pods = self._core.list_namespaced_pod(self._namespace, label_selector=f"{names.GROUP}={group_id}").items
        for pod in pods:
            assert pod.metadata is not None
            self._faults.kill_container(f"{self._namespace}/{pod.metadata.name}", "worker")

    async def occupy(self, owner: str) -> None:
        port = kubernetes.client.V1ServicePort(name="http", port=8000)
        metadata = kubernetes.client.V1ObjectMeta(name=names.service_of(owner))
        spec = kubernetes.client.V1ServiceSpec(ports=[port], selector={"app": "theirs"})
        self._core.create_namespaced_service(self._namespace, kubernetes.client.V1Service(metadata=metadata, spec=spec))

    async def close(self) -> None:
        """The namespace goes with all that is in it."""


@pytest.fixture
async def harness(
    cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, namespace: str
) -> AsyncIterator[contract.Harness]:
    made = ClusterHarness(cluster, api, namespace)
    yield made
    await made.close()
