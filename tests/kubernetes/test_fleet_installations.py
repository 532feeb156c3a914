"""Installations beside each other never touch what is not theirs; what an administrator gets wrong is refused at the start."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import grpc
import kubernetes
import pytest

from protos.tms.v1 import common_pb2, lease_pb2, lease_pb2_grpc
from tests.kubernetes import charts
from tests.kubernetes import clients as client_programs
from tests.kubernetes import fleet as fleets
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import waiting
from tests.support import kubernetes_backend, onnx_models
from tests.support import system as systems

pytestmark = pytest.mark.slow  # real pods start, load and stop
# The pods of the test cluster have addresses of their own but share the wildcard one.
CHOSEN: fleets.Json = {
    "server": {"extraArgs": ["--api-address=$(POD_IP)", "--metrics-address=$(POD_IP)"]},
    "persistence": {"enabled": False},
    "metricsApi": {"enabled": False},
    "profiles": {"default": fleets.PROFILE},
}
# As docs/install.md says: what TMS made for leases stays, and so do its certificate and what publishes it.
STAYS = {"Deployment", "ReplicaSet", "Pod", "Service", "Secret", "PodDisruptionBudget", "ConfigMap"}


def test_two_in_one_namespace_never_touch_each_others_objects(
    fleet: fleets.Fleet, place: fleets.Place, tmp_path: pathlib.Path
) -> None:
    first = fleet.lease("two", name="same")
    with fleets.running(place, tmp_path) as other:
        second = other.lease("three", name="other")
        assert fleet.made()["Deployment"] == {first.worker_group}
        assert other.made()["Deployment"] == {second.worker_group}
        other.point("same", second.id)
        other.until_condition(second.id, "Published", "NameTaken")

        before = _versions(fleet)
        with client_programs.running(first.endpoint.host) as clients:
            other.kill_server()
            other.start()
            other.until_serving(second.id)
            other.sweep()
            assert clients.onward(2.0).failed == []
    assert _versions(fleet) == before


def test_an_installation_by_the_chart_serves_over_tls_and_its_leases_outlive_it(
    cluster: cluster_client.Cluster,
    api: kubernetes.client.ApiClient,
    namespace: str,
    fleet: fleets.Fleet,
    tmp_path: pathlib.Path,
) -> None:
    bystander = fleet.lease("five")
    before = _versions(fleet)
    onnx_models.put(tmp_path, "two", onnx_models.scale(2.0))
    values = {**CHOSEN, "repositories": {"models": {"host_path": str(tmp_path)}}}
    with charts.helm(str(cluster.kubeconfig), namespace) as helm:
        helm.install("tms", values, wait="watcher", timeout=90)
        with _channel(api, namespace) as channel:
            stub = lease_pb2_grpc.LeasesStub(channel)
            asked = lease_pb2.CreateLeaseRequest(
                models=[systems.model("m", "model://models/two")],
                dedicated=lease_pb2.DedicatedPlacement(),
                name="digits",
            )
            lease = [each.lease for each in stub.Acquire(asked, timeout=60)][-1]
        assert lease.state == fleets.ACTIVE
        host = f"digits.{namespace}.svc"
        with client_programs.running(host) as clients:
            helm.uninstall("tms")
            left = waiting.until(lambda: _left(api, namespace), lambda left: left.keys() <= STAYS)
            clients.onward(2.0)
            assert clients.now().failed == []
    assert left["Service"] == {lease.id, f"{lease.id}-headless", "digits", "digits-headless"}
    assert left["Deployment"] == {lease.worker_group}
    assert _versions(fleet) == before
    assert fleet.get(bystander.id).state == fleets.ACTIVE


def test_a_kubeconfig_without_rights_is_refused_with_those_that_are_missing(
    cluster: cluster_client.Cluster, namespace: str, api: kubernetes.client.ApiClient, tmp_path: pathlib.Path
) -> None:
    mallory = cluster.token("mallory")
    file = kubernetes_backend.kubeconfig_of(tmp_path, cluster.server, cluster.ca_certificate, mallory)
    said = _refused(fleets.Place(cluster, api, namespace, file), tmp_path)
    assert "deployments.apps" in said
    assert "Traceback" not in said


def test_a_kubeconfig_that_is_none_is_refused(place: fleets.Place, tmp_path: pathlib.Path) -> None:
    missing = fleets.Place(place.cluster, place.api, place.namespace, tmp_path / "nowhere")
    said = _refused(missing, tmp_path)
    assert "nowhere" in said
    assert "Traceback" not in said


def test_strict_refuses_a_shape_that_no_node_matches(place: fleets.Place, tmp_path: pathlib.Path) -> None:
    with fleets.running(place, tmp_path, strict=True) as fleet:
        with pytest.raises(grpc.RpcError, match="disk=golden"):
            fleet.ask(dedicated=_shaped("nowhere"))
        with pytest.raises(grpc.RpcError, match="profile"):
            fleet.ask(dedicated=_shaped("unknown"))
        assert fleet.made() == {}


def _shaped(profile: str) -> lease_pb2.DedicatedPlacement:
    return lease_pb2.DedicatedPlacement(worker=common_pb2.WorkerSpec(profile=profile))


def _refused(place: fleets.Place, folder: pathlib.Path) -> str:
    """What a server says that does not start."""
    refused = fleets.Fleet(place, folder)
    with pytest.raises(AssertionError, match="tms-server ended with 1"):
        refused.start()
    return refused.log()


def _versions(fleet: fleets.Fleet) -> dict[str, str]:
    """Changes when anybody writes to a Service, Deployment or Secret of a fleet."""
    listed: list[Any] = [
        *fleet.core.list_namespaced_service(fleet.namespace, label_selector=fleet.ours).items,
        *fleet.core.list_namespaced_secret(fleet.namespace, label_selector=fleet.ours).items,
        *fleet.apps.list_namespaced_deployment(fleet.namespace, label_selector=fleet.ours).items,
    ]
    return {f"{type(each).__name__} {each.metadata.name}": str(each.metadata.resource_version) for each in listed}


@contextlib.contextmanager
def _channel(api: kubernetes.client.ApiClient, namespace: str) -> Iterator[grpc.Channel]:
    """To the chart's server, trusted by what it published."""
    published = kubernetes.client.CoreV1Api(api).read_namespaced_config_map("tms-ca", namespace).data
    assert published is not None
    credentials = grpc.ssl_channel_credentials(root_certificates=str(published["ca.crt"]).encode())
    with grpc.secure_channel(f"tms.{namespace}.svc:30345", credentials) as channel:
        yield channel


def _left(api: kubernetes.client.ApiClient, namespace: str) -> dict[str, set[str]]:
    """Objects of a namespace, but for what Kubernetes itself puts into each."""
    dynamic = kubernetes.dynamic.DynamicClient(api)  # type: ignore[no-untyped-call]  # theirs
    found: dict[str, set[str]] = {}
    for version, kind in (*charts.KINDS, ("v1", "Pod"), ("apps/v1", "ReplicaSet")):
        resource = dynamic.resources.get(api_version=version, kind=kind)
        if resource.namespaced:
            listed = resource.get(namespace=namespace).to_dict()["items"]
            names = {each["metadata"]["name"] for each in listed} - {"default", "kube-root-ca.crt"}
            found |= {kind: names} if names else {}
    return found
