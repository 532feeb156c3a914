"""What goes wrong on the fake kubelet's nodes, and what the cluster makes of it."""

from __future__ import annotations

import collections.abc
import json
import ssl
import urllib.request

import kubernetes
import pytest

from tests.kubernetes import pods_by_hand
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import waiting
from tests.kubernetes.cluster.kubelet import faults as kubelet_faults

_IDLE = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
_NODE = "node-2"


@pytest.fixture
def faults(cluster: cluster_client.Cluster) -> collections.abc.Iterator[kubelet_faults.Faults]:
    result = kubelet_faults.Faults(cluster.directory)
    result.register_image(pods_by_hand.SHELL, [])
    yield result
    result.restore_node(_NODE)


@pytest.fixture
def pods(api: kubernetes.client.ApiClient, namespace: str, faults: kubelet_faults.Faults) -> pods_by_hand.Pods:
    return pods_by_hand.Pods(api, namespace)


def _is_node_ready(pods: pods_by_hand.Pods) -> str:
    node = json.loads(pods.core.read_node(_NODE, _preload_content=False).data)
    return pods_by_hand.condition(node, "Ready") or ""


def test_a_killed_container_makes_its_pod_unready_and_comes_back(
    pods: pods_by_hand.Pods, faults: kubelet_faults.Faults
) -> None:
    key = pods.create("killed", pods_by_hand.shell(_IDLE))
    pods.until_ready("killed")
    watch = kubernetes.watch.Watch()  # type: ignore[no-untyped-call]  # theirs
    seen = watch.stream(pods.core.list_namespaced_pod, pods.namespace, timeout_seconds=30)  # type: ignore[no-untyped-call]  # theirs
    faults.kill_container(key, "main", reason="OOMKilled")
    fallen = next(
        event["raw_object"] for event in seen if pods_by_hand.condition(event["raw_object"], "Ready") == "False"
    )
    said = pods_by_hand.container(fallen)
    ended = said["state"].get("terminated") or said["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")
    pod = pods.until_ready("killed")
    assert pods_by_hand.container(pod)["restartCount"] == 1


def test_a_frozen_container_answers_nothing_until_it_is_thawed(
    pods: pods_by_hand.Pods, faults: kubelet_faults.Faults
) -> None:
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    probe = {"httpGet": {"port": 8000}, "periodSeconds": 1, "failureThreshold": 1}
    script = "exec python3 -m http.server 8000 --bind $POD_IP"
    key = pods.create("frozen", pods_by_hand.shell(script, env=[address], readinessProbe=probe))
    pods.until_ready("frozen")
    faults.freeze_container(key, "main")
    pods.until("frozen", lambda pod: pods_by_hand.condition(pod, "Ready") == "False")
    faults.thaw_container(key, "main")
    pod = pods.until_ready("frozen")
    assert pods_by_hand.container(pod)["restartCount"] == 0


def test_readiness_can_be_held_back(pods: pods_by_hand.Pods, faults: kubelet_faults.Faults) -> None:
    key = pods.create("held", pods_by_hand.shell(_IDLE))
    pods.until_ready("held")
    faults.hold_readiness(key)
    pods.until("held", lambda pod: pods_by_hand.condition(pod, "Ready") == "False")
    faults.release_readiness(key)
    pods.until_ready("held")


def test_an_evicted_pod_stays_as_a_failed_one(pods: pods_by_hand.Pods, faults: kubelet_faults.Faults) -> None:
    key = pods.create("evicted", pods_by_hand.shell(_IDLE))
    pods.until_ready("evicted")
    faults.evict(key, "The node was low on resource: memory.")
    pod = pods.until("evicted", lambda pod: pod["status"]["phase"] == "Failed")
    assert (pod["status"]["reason"], pod["status"]["message"]) == ("Evicted", "The node was low on resource: memory.")
    assert pods_by_hand.condition(pod, "DisruptionTarget") == "True"
    pods.delete("evicted")
    pods.until("evicted", lambda pod: not pod)


def test_a_pull_fails_until_it_is_mended(pods: pods_by_hand.Pods, faults: kubelet_faults.Faults) -> None:
    faults.register_image("test/fragile", [])
    faults.fail_pull("test/fragile:2", "unauthorized: authentication required")
    pods.create("first", pods_by_hand.shell(_IDLE) | {"image": "test/fragile:1"})
    pods.create("second", pods_by_hand.shell(_IDLE) | {"image": "test/fragile:2"})
    pods.until_ready("first")
    pod = pods.until("second", lambda pod: pods_by_hand.waits_for(pod) == "ImagePullBackOff")
    assert "unauthorized" in pods_by_hand.container(pod)["state"]["waiting"]["message"]
    faults.mend_pull("test/fragile:2")
    pods.until_ready("second")


def test_a_lost_node_is_written_off_and_its_pods_come_back_with_it(
    pods: pods_by_hand.Pods, faults: kubelet_faults.Faults
) -> None:
    pods.create("lost", pods_by_hand.shell(_IDLE), nodeName=_NODE)
    pods.until_ready("lost")
    faults.lose_node(_NODE)
    waiting.until(lambda: _is_node_ready(pods), lambda ready: ready == "Unknown")
    pods.until("lost", lambda pod: pods_by_hand.condition(pod, "Ready") == "False")
    assert pods_by_hand.container(pods.get("lost"))["restartCount"] == 0
    faults.restore_node(_NODE)
    pod = pods.until("lost", lambda pod: pods_by_hand.container(pod)["restartCount"] == 1)
    pods.until_ready("lost")
    waiting.until(lambda: _is_node_ready(pods), lambda ready: ready == "True")
    assert pod["spec"]["nodeName"] == _NODE


def test_a_cut_wire_hides_pods_that_go_on(pods: pods_by_hand.Pods, faults: kubelet_faults.Faults) -> None:
    key = pods.create("hidden", pods_by_hand.shell(_IDLE), nodeName=_NODE)
    pods.until_ready("hidden")
    pid = faults.container_pid(key, "main")
    faults.lose_node(_NODE, processes="running")
    pods.delete("hidden")
    pods.until("hidden", lambda pod: pods_by_hand.condition(pod, "Ready") == "False")
    assert faults.container_pid(key, "main") == pid
    faults.restore_node(_NODE)
    pods.until("hidden", lambda pod: not pod)


def test_unknown_names_are_refused(pods: pods_by_hand.Pods, faults: kubelet_faults.Faults) -> None:
    with pytest.raises(kubelet_faults.FaultError, match="no node nowhere"):
        faults.lose_node("nowhere")
    with pytest.raises(kubelet_faults.FaultError, match="no pod"):
        faults.kill_container(f"{pods.namespace}/none", "main")


def test_nobody_without_a_certificate_reads_logs(pods: pods_by_hand.Pods, cluster: cluster_client.Cluster) -> None:
    pods.create("private", pods_by_hand.shell(_IDLE))
    pod = pods.until_ready("private")
    url = f"https://{pod['status']['hostIP']}:10250/containerLogs/{pods.namespace}/private/main"
    context = ssl.create_default_context(cafile=str(cluster.ca_certificate))
    with pytest.raises(OSError, match=r"(?i)certificate|reset|closed"):
        urllib.request.urlopen(url, context=context, timeout=5)


@pytest.mark.disruptive
def test_containers_outlive_an_api_server_that_is_away(
    pods: pods_by_hand.Pods, faults: kubelet_faults.Faults, cluster: cluster_client.Cluster
) -> None:
    key = pods.create("steady", pods_by_hand.shell(_IDLE))
    pods.until_ready("steady")
    pid = faults.container_pid(key, "main")
    cluster.stop_api_server()
    faults.hold_readiness(key)
    cluster.start_api_server()
    pods.until("steady", lambda pod: pods_by_hand.condition(pod, "Ready") == "False")
    faults.release_readiness(key)
    pods.until_ready("steady")
    assert faults.container_pid(key, "main") == pid


@pytest.mark.disruptive
def test_a_kubelet_that_starts_anew_starts_its_pods_anew(
    pods: pods_by_hand.Pods, faults: kubelet_faults.Faults, cluster: cluster_client.Cluster
) -> None:
    key = pods.create("restarted", pods_by_hand.shell(_IDLE))
    before = pods.until_ready("restarted")
    cluster.stop("kubelet")
    with pytest.raises(OSError, match="refused"):
        faults.pods()
    cluster.start("kubelet")
    pod = pods.until("restarted", lambda pod: pods_by_hand.container(pod)["restartCount"] == 1)
    assert pod["status"]["podIP"] == before["status"]["podIP"]
    pods.until_ready("restarted")
    assert key in faults.pods()
