"""Leases that grow under real load, with the chart's own server: by the real autoscaler, by copies, and without either."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import http.client
import json
import pathlib
import threading

import grpc
import kubernetes
import pytest

from protos.tms.v1 import common_pb2, lease_pb2, lease_pb2_grpc
from tests.kubernetes import charts
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import waiting
from tests.support import onnx_models

# A server, workers and load are started for each test, and autoscalers look every few seconds.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STARTED_S, MOVED_S = 90, 120.0
TARGET, MOST, SENDERS = 20, 3, 4
GROWS = lease_pb2.Autoscaling(
    min_replicas=1,
    max_replicas=MOST,
    metrics=[
        lease_pb2.ScalingMetric(kind=lease_pb2.SCALING_METRIC_KIND_REQUEST_RATE, target_milli=TARGET * 1000),
    ],
)
GROWS.behavior.scale_down_window.seconds = 1


@dataclasses.dataclass
class Load:
    """Requests to one address at a rate that can be turned; every failure is kept."""

    host: str
    port: int
    rate: float = TARGET / 4
    failures: list[str] = dataclasses.field(default_factory=list)
    answered: int = 0

    def send(self, stop: threading.Event) -> None:
        body = json.dumps(
            {"inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}]}
        )
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        with contextlib.closing(connection):
            while not stop.wait(SENDERS / self.rate):
                try:
                    connection.request("POST", "/v2/models/one/infer", body, {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    text = answer.read()
                except (OSError, http.client.HTTPException) as error:
                    self.failures.append(repr(error))
                    connection.close()
                    continue
                self.answered += 1
                if answer.status != 200:
                    self.failures.append(f"{answer.status}: {text!r}")


@contextlib.contextmanager
def loading(load: Load) -> collections.abc.Iterator[None]:
    stop = threading.Event()
    senders = [threading.Thread(target=load.send, args=(stop,)) for _ in range(SENDERS)]
    for each in senders:
        each.start()
    try:
        yield
    finally:
        stop.set()
        for each in senders:
            each.join()


@dataclasses.dataclass
class Installed:
    """A release of the chart, and its leases."""

    leases: lease_pb2_grpc.LeasesStub
    api: kubernetes.client.ApiClient
    namespace: str

    def acquire(self, request: lease_pb2.CreateLeaseRequest) -> lease_pb2.Lease:
        *_, last = self.leases.Acquire(request, timeout=STARTED_S)
        assert last.lease.state == lease_pb2.LEASE_STATE_ACTIVE, last.lease
        return last.lease

    def get(self, lease: lease_pb2.Lease) -> lease_pb2.Lease:
        return self.leases.Get(lease_pb2.GetLeaseRequest(lease=lease.id), timeout=10)

    def until_size(self, lease: lease_pb2.Lease, size: int) -> lease_pb2.Lease:
        """Waits until so many serve, and no others are wanted."""
        found: lease_pb2.Lease = waiting.until(
            lambda: self.get(lease), lambda now: now.ready_replicas == now.wanted_replicas == size, MOVED_S
        )
        return found

    def autoscalers(self) -> list[str]:
        listed = kubernetes.client.AutoscalingV2Api(self.api).list_namespaced_horizontal_pod_autoscaler(self.namespace)
        return [each.metadata.name for each in listed.items if each.metadata is not None and each.metadata.name]

    def workers(self) -> int:
        """Pods of workers that are not on their way out."""
        selector = "app.kubernetes.io/managed-by=tms,tms.dev/group"
        pods = kubernetes.client.CoreV1Api(self.api).list_namespaced_pod(self.namespace, label_selector=selector)
        return sum(each.metadata is not None and each.metadata.deletion_timestamp is None for each in pods.items)


@contextlib.contextmanager
def installed(
    cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, namespace: str, folder: pathlib.Path
) -> collections.abc.Iterator[Installed]:
    onnx_models.put(folder, "one", onnx_models.identity())
    values = {
        "server": {
            "extraArgs": [f"--{name}-address=$(POD_IP)" for name in ("api", "metrics", "metrics-api")],
        },
        "persistence": {"enabled": False},
        "repositories": {"zoo": {"path": "/tms/repositories/zoo", "host_path": str(folder)}},
        "profiles": {"default": {"cpu_milli": 50, "termination_grace_s": 10}},
    }
    with charts.helm(str(cluster.kubeconfig), namespace) as helm:
        helm.install("tms", values, wait="watcher", timeout=STARTED_S)
        published = kubernetes.client.CoreV1Api(api).read_namespaced_config_map("tms-ca", namespace).data
        assert published is not None
        credentials = grpc.ssl_channel_credentials(root_certificates=str(published["ca.crt"]).encode())
        with grpc.secure_channel(f"tms.{namespace}.svc:30345", credentials) as channel:
            yield Installed(lease_pb2_grpc.LeasesStub(channel), api, namespace)


def asked(*, dedicated: bool) -> lease_pb2.CreateLeaseRequest:
    model = common_pb2.ModelReference(name="one", uri="model://zoo/one", declared_bytes=2**20)
    request = lease_pb2.CreateLeaseRequest(models=[model], autoscaling=GROWS)
    if dedicated:
        request.dedicated.SetInParent()
    else:
        request.pool.SetInParent()
    return request


def grow_and_shrink(there: Installed, lease: lease_pb2.Lease) -> None:
    """1 -> n -> 1 under load that never ends, and never fails."""
    load = Load(lease.endpoint.host, lease.endpoint.http_port)
    with loading(load):
        assert there.until_size(lease, 1).wanted_replicas == 1
        load.rate = TARGET * (MOST + 1)
        there.until_size(lease, MOST)
        assert there.workers() == MOST
        load.rate = TARGET / 4
        there.until_size(lease, 1)
    assert load.failures == []
    assert load.answered > 0
    waiting.until(there.workers, lambda count: count == 1, MOVED_S)
    assert there.get(lease).state == lease_pb2.LEASE_STATE_ACTIVE


def test_a_dedicated_lease_follows_the_real_autoscaler(
    cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, namespace: str, tmp_path: pathlib.Path
) -> None:
    with installed(cluster, api, namespace, tmp_path) as there:
        lease = there.acquire(asked(dedicated=True))
        assert there.autoscalers() == [lease.worker_group]
        grow_and_shrink(there, lease)


def test_a_lease_in_a_pool_grows_by_copies_on_further_workers(
    cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, namespace: str, tmp_path: pathlib.Path
) -> None:
    with installed(cluster, api, namespace, tmp_path) as there:
        lease = there.acquire(asked(dedicated=False))
        assert there.autoscalers() == []
        grow_and_shrink(there, lease)


def test_where_another_provider_has_the_metrics_tms_scales_by_itself(
    cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, namespace: str, tmp_path: pathlib.Path
) -> None:
    with foreign_provider(api), installed(cluster, api, namespace, tmp_path) as there:
        lease = there.acquire(asked(dedicated=True))
        assert there.autoscalers() == []
        grow_and_shrink(there, lease)
        spec = kubernetes.client.ApiregistrationV1Api(api).read_api_service(PROVIDER).spec
        assert spec is not None
        assert spec.service is not None
        assert (spec.service.namespace, spec.service.name) == ("keda", "keda-metrics")


PROVIDER = "v1beta1.external.metrics.k8s.io"


@contextlib.contextmanager
def foreign_provider(api: kubernetes.client.ApiClient) -> collections.abc.Iterator[None]:
    registrations = kubernetes.client.ApiregistrationV1Api(api)
    manifest = {
        "metadata": {"name": PROVIDER},
        "spec": {
            "group": "external.metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"namespace": "keda", "name": "keda-metrics"},
        },
    }
    wanted = kubernetes.client.V1APIService.from_dict(manifest)
    assert wanted is not None
    registrations.create_api_service(wanted)
    try:
        yield
    finally:
        registrations.delete_api_service(PROVIDER)
