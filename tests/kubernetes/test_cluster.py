"""What every other test here stands on: a real control plane, ways to Services, names, users, data that is kept."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import signal
import socket
import typing
import urllib.error
import urllib.request

import kubernetes
import pytest

from tests.kubernetes import by_hand
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import layout, waiting


@pytest.fixture
def core(api: kubernetes.client.ApiClient) -> kubernetes.client.CoreV1Api:
    return kubernetes.client.CoreV1Api(api)


def test_every_node_is_ready(core: kubernetes.client.CoreV1Api, cluster: cluster_client.Cluster) -> None:
    wanted = {node["name"] for node in json.loads(cluster.layout.nodes.read_text())}
    nodes = [node.to_dict() for node in core.list_node().items]
    ready = {node["metadata"]["name"] for node in nodes if _is_ready(node)}
    assert layout.CONTROL_PLANE_NODE in wanted
    assert wanted <= ready


def test_a_fresh_namespace_has_its_service_account(core: kubernetes.client.CoreV1Api, namespace: str) -> None:
    account = core.read_namespaced_service_account("default", namespace)
    assert account.metadata is not None
    assert account.metadata.name == "default"


def test_a_services_address_and_names_lead_to_its_endpoint(api: kubernetes.client.ApiClient, namespace: str) -> None:
    with by_hand.serving("10.244.254.1", by_hand.Handler):
        address = by_hand.publish(api, by_hand.Service(namespace, "web", ("10.244.254.1",)))
        waiting.until(lambda: _connects(address), bool)
        for host in (address, f"web.{namespace}.svc", f"web.{namespace}.svc.{layout.DOMAIN}"):
            waiting.until(functools.partial(_resolve, host), {address}.__eq__)
            assert _fetch(host) == "10.244.254.1"


def test_requests_to_a_service_spread_over_its_endpoints(api: kubernetes.client.ApiClient, namespace: str) -> None:
    addresses = ("10.244.254.2", "10.244.254.3")
    with by_hand.serving(addresses[0], by_hand.Handler), by_hand.serving(addresses[1], by_hand.Handler):
        address = by_hand.publish(api, by_hand.Service(namespace, "web", addresses))
        waiting.until(lambda: _connects(address), bool)
        seen = {_fetch(address) for _ in range(100)}  # a fair choice misses one of two with probability 2**-99
    assert seen == set(addresses)


def test_a_headless_services_name_gives_the_pods_addresses(api: kubernetes.client.ApiClient, namespace: str) -> None:
    addresses = ("10.244.254.4", "10.244.254.5")
    by_hand.publish(api, by_hand.Service(namespace, "web", addresses, headless=True))
    assert waiting.until(lambda: _resolve(f"web.{namespace}.svc"), len) == set(addresses)


def test_an_unknown_name_is_unknown(namespace: str) -> None:
    assert _resolve(f"nothing.{namespace}.svc") == set()


def test_users_are_told_apart_and_their_calls_are_on_record(cluster: cluster_client.Cluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    assert cluster.get(path, cluster.token("mallory")).status == 403
    assert cluster.get(path, "no-such-token").status == 401
    assert cluster.get(path, cluster.token("root")).status == 200
    records = [json.loads(line) for line in cluster.layout.audit_log.read_text().splitlines() if path in line]
    seen = {(record["user"].get("username"), record["responseStatus"]["code"]) for record in records}
    assert {("mallory", 403), ("root", 200)} <= seen


def test_an_order_for_an_unknown_program_is_refused(cluster: cluster_client.Cluster) -> None:
    with pytest.raises(cluster_client.OrderError, match="no-such-program"):
        cluster.stop("no-such-program")


@pytest.mark.disruptive
def test_what_was_written_outlives_the_api_server(
    cluster: cluster_client.Cluster, core: kubernetes.client.CoreV1Api, namespace: str
) -> None:
    metadata = kubernetes.client.V1ObjectMeta(name="kept")
    core.create_namespaced_config_map(namespace, kubernetes.client.V1ConfigMap(metadata=metadata, data={"a": "b"}))
    with cluster.without(cluster_client.API_SERVER), pytest.raises(ConnectionRefusedError):
        socket.create_connection((layout.HOST_ADDRESS, layout.API_PORT), timeout=5)
    assert core.read_namespaced_config_map("kept", namespace).data == {"a": "b"}


@pytest.mark.disruptive
def test_a_pod_waits_while_the_scheduler_is_away(
    cluster: cluster_client.Cluster, core: kubernetes.client.CoreV1Api, namespace: str
) -> None:
    container = kubernetes.client.V1Container(name="main", image="example.com/none")
    pod = kubernetes.client.V1Pod(
        metadata=kubernetes.client.V1ObjectMeta(name="waits"),
        spec=kubernetes.client.V1PodSpec(containers=[container]),
    )
    with cluster.without("kube-scheduler"):
        core.create_namespaced_pod(namespace, pod)
        assert _node_of(core, namespace) is None
    assert waiting.until(lambda: _node_of(core, namespace), bool)


@pytest.mark.disruptive
def test_a_program_that_dies_comes_back(cluster: cluster_client.Cluster) -> None:
    (first,) = _processes(cluster, "kube-scheduler")
    os.kill(first, signal.SIGKILL)
    waiting.until(lambda: _processes(cluster, "kube-scheduler"), lambda found: found and first not in found)
    cluster.start("kube-scheduler")  # returns once it is ready


def _processes(cluster: cluster_client.Cluster, program: str) -> list[int]:
    """The ids of this cluster's processes of a program; others may run beside it."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = entry.read_text()
            if pathlib.PurePath(command.split("\0")[0]).name == program and str(cluster.directory) in command:
                found.append(int(entry.parent.name))
    return found


def _is_ready(node: dict[str, typing.Any]) -> bool:
    return any(
        (condition["type"], condition["status"]) == ("Ready", "True") for condition in node["status"]["conditions"]
    )


def _node_of(core: kubernetes.client.CoreV1Api, namespace: str) -> str | None:
    spec = core.read_namespaced_pod("waits", namespace).spec
    assert spec is not None
    return spec.node_name


def _fetch(host: str) -> str:
    with urllib.request.urlopen(f"http://{host}:80/", timeout=10) as response:
        return str(response.read().decode())


def _connects(address: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, 80), timeout=0.2):
        return True
    return False


def _resolve(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, 80, socket.AF_INET, socket.SOCK_STREAM)}
    except socket.gaierror:
        return set()
