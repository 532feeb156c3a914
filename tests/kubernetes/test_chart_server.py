"""The chart's server as it runs in the cluster: its probes, certificates, metrics API, upgrades, and what it remembers."""

from __future__ import annotations

import collections.abc
import json

import grpc
import helm_python
import kubernetes
import pytest

from protos.tms.v1 import pool_pb2, pool_pb2_grpc
from tests.kubernetes import charts
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import waiting

# The pods of the test cluster have addresses of their own but share the wildcard one.
OWN_ADDRESS = {
    "server": {
        "extraArgs": [
            "--api-address=$(POD_IP)",
            "--metrics-address=$(POD_IP)",
            "--metrics-api-address=$(POD_IP)",
        ]
    },
    "persistence": {"enabled": False},
}
METRICS = "/apis/external.metrics.k8s.io/v1beta1"
STARTED_S = 90


@pytest.fixture
def helm(cluster: cluster_client.Cluster, namespace: str) -> collections.abc.Iterator[charts.Helm]:
    with charts.helm(str(cluster.kubeconfig), namespace) as opened:
        yield opened


def test_it_becomes_ready_by_its_own_probes_and_rights_and_stays_so_over_an_upgrade(
    cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, helm: charts.Helm
) -> None:
    named = {**OWN_ADDRESS, "tls": {"names": ["tms.example"]}}
    helm.install("tms", named, wait="watcher", timeout=STARTED_S)
    assert _pools(api, helm.namespace) == ["default"]
    assert _pools(api, helm.namespace, called="tms.example") == ["default"]
    first = _pod(api, helm.namespace)

    answer = waiting.until(lambda: cluster.get(METRICS, cluster.token("root")), lambda found: found.status == 200)
    assert json.loads(answer.body)["groupVersion"] == "external.metrics.k8s.io/v1beta1"

    helm.upgrade("tms", {**named, "pools": {"further": {}}}, wait="watcher", timeout=STARTED_S)
    assert _pools(api, helm.namespace) == ["default", "further"]
    assert _pod(api, helm.namespace) != first

    helm.rollback("tms", 1)
    waiting.until(lambda: _pools_now(api, helm.namespace), lambda names: names == ["default"], limit_s=STARTED_S)


def test_its_log_has_nothing_but_information(api: kubernetes.client.ApiClient, helm: charts.Helm) -> None:
    helm.install("tms", OWN_ADDRESS, wait="watcher", timeout=STARTED_S)
    log = kubernetes.client.CoreV1Api(api).read_namespaced_pod_log(_pod(api, helm.namespace), helm.namespace)
    lines = [json.loads(line) for line in str(log).splitlines() if line.startswith("{")]
    assert "server.ready" in {each["event"] for each in lines}
    assert [each for each in lines if each["level"] != "info"] == []


def test_settings_that_the_server_refuses_fail_the_install_and_say_why(
    api: kubernetes.client.ApiClient, helm: charts.Helm
) -> None:
    wrong = {**OWN_ADDRESS, "server": {"extraArgs": ["--log-level=loud"]}}
    helm.install("tms", wrong)
    core = kubernetes.client.CoreV1Api(api)
    said = waiting.until(lambda: _log(core, helm.namespace), lambda text: "log.level" in text, limit_s=STARTED_S)
    assert "wrong settings" in said


def test_a_migration_that_fails_fails_the_install_before_any_server_starts(
    api: kubernetes.client.ApiClient, helm: charts.Helm
) -> None:
    nobody = {"url": "postgresql://tms:secret@127.0.0.1:1/tms?connect_timeout=2"}
    with pytest.raises(helm_python.HelmError, match="tms-migrate"):
        helm.install("tms", {"database": nobody, "migrations": {"backoffLimit": 0}}, timeout=STARTED_S)
    core, apps = kubernetes.client.CoreV1Api(api), kubernetes.client.AppsV1Api(api)
    assert apps.list_namespaced_deployment(helm.namespace).items == []
    said = _log(core, helm.namespace)
    assert "database.not_migrated" in said
    assert "secret" not in said


def _log(core: kubernetes.client.CoreV1Api, namespace: str) -> str:
    pods = core.list_namespaced_pod(namespace).items
    if not pods or pods[0].metadata is None:
        return ""
    try:
        return str(core.read_namespaced_pod_log(str(pods[0].metadata.name), namespace))
    except kubernetes.client.ApiException:
        return ""


def _pod(api: kubernetes.client.ApiClient, namespace: str) -> str:
    """The name of the one server that is ready and was never started anew."""
    pods = kubernetes.client.CoreV1Api(api).list_namespaced_pod(
        namespace, label_selector="app.kubernetes.io/name=tms-server"
    )
    (pod,) = (each for each in pods.items if each.metadata and not each.metadata.deletion_timestamp)
    assert pod.metadata is not None
    assert pod.status is not None
    assert pod.status.container_statuses is not None
    (container,) = pod.status.container_statuses
    assert container.ready
    assert container.restart_count == 0
    return str(pod.metadata.name)


def _pools_now(api: kubernetes.client.ApiClient, namespace: str) -> list[str]:
    try:
        return _pools(api, namespace)
    except grpc.RpcError:
        return []


def _pools(api: kubernetes.client.ApiClient, namespace: str, called: str = "") -> list[str]:
    """What a client is told that dials the Service, by another name perhaps, and trusts what the server published."""
    published = kubernetes.client.CoreV1Api(api).read_namespaced_config_map("tms-ca", namespace).data
    assert published is not None
    credentials = grpc.ssl_channel_credentials(root_certificates=str(published["ca.crt"]).encode())
    known_as = [("grpc.ssl_target_name_override", called)] if called else []
    with grpc.secure_channel(f"tms.{namespace}.svc:30345", credentials, known_as) as channel:
        listed = pool_pb2_grpc.PoolsStub(channel).List(pool_pb2.ListPoolsRequest(), timeout=10)
    return sorted(each.name for each in listed.pools)
