"""What containers of the fake kubelet find: their environment, files of the API server, tokens, roots and claims."""

from __future__ import annotations

import pathlib
import sys
import typing

import kubernetes
import pytest

from tests.kubernetes import pods_by_hand
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster.kubelet import faults as kubelet_faults

_IDLE = "trap 'exit 0' TERM; while :; do sleep 0.05; done"


@pytest.fixture
def pods(cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, namespace: str) -> pods_by_hand.Pods:
    kubelet_faults.Faults(cluster.directory).register_image(pods_by_hand.SHELL, [])
    return pods_by_hand.Pods(api, namespace)


def _run(pods: pods_by_hand.Pods, script: str, **spec: typing.Any) -> str:
    """Runs a script in a pod of its own to its end, and gives what it said."""
    fields = {key: spec.pop(key) for key in ("volumeMounts", "env", "envFrom", "securityContext") if key in spec}
    pods.create("runner", pods_by_hand.shell(script, **fields), restartPolicy="Never", **spec)
    pods.until("runner", lambda pod: pod["status"]["phase"] in {"Succeeded", "Failed"})
    return pods.log("runner")


def test_environments_come_from_the_pod_from_configuration_and_from_services(pods: pods_by_hand.Pods) -> None:
    core, namespace = pods.core, pods.namespace
    core.create_namespaced_secret(namespace, {"metadata": {"name": "keys"}, "stringData": {"A": "secret"}})
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "words"}, "data": {"B": "word"}})
    service = {"metadata": {"name": "my-service"}, "spec": {"ports": [{"name": "web", "port": 81}]}}
    core.create_namespaced_service(namespace, service)
    fields = ("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "status.podIP")
    said = _run(
        pods,
        "env",
        env=[
            *({"name": path.replace(".", "_"), "valueFrom": {"fieldRef": {"fieldPath": path}}} for path in fields),
            {"name": "JOINED", "value": "$(metadata_name)/$(A)/$(NONE)/$$(A)"},
        ],
        envFrom=[{"secretRef": {"name": "keys"}}, {"prefix": "X_", "configMapRef": {"name": "words"}}],
    )
    variables = dict(line.split("=", 1) for line in said.splitlines())
    pod = pods.get("runner")
    assert variables["metadata_uid"] == pod["metadata"]["uid"]
    assert variables["spec_nodeName"] == pod["spec"]["nodeName"]
    assert variables["status_podIP"] == pod["status"]["podIP"]
    assert variables["JOINED"] == "runner/secret/$(NONE)/$(A)"
    assert variables["X_B"] == "word"
    assert variables["KUBERNETES_SERVICE_HOST"] == "10.0.0.1"
    assert variables["MY_SERVICE_SERVICE_PORT_WEB"] == "81"
    assert variables["HOSTNAME"] == "runner"


def test_a_changed_configuration_reaches_its_files(pods: pods_by_hand.Pods) -> None:
    body = {"metadata": {"name": "words"}, "data": {"word": "before\n", "other": "kept\n"}}
    pods.core.create_namespaced_config_map(pods.namespace, body)
    source = {"name": "words", "items": [{"key": "word", "path": "deep/word"}]}
    pods.create(
        "reader",
        pods_by_hand.shell(
            "while :; do cat /words/deep/word; sleep 0.2; done",
            volumeMounts=[{"name": "words", "mountPath": "/words"}],
        ),
        volumes=[{"name": "words", "configMap": source}],
    )
    pods.until_logged("reader", "before")
    pods.core.patch_namespaced_config_map("words", pods.namespace, {"data": {"word": "after\n"}})
    pods.until_logged("reader", "after")


def test_a_missing_volume_is_told_and_waited_for(pods: pods_by_hand.Pods) -> None:
    pods.create(
        "waiting",
        pods_by_hand.shell(f"cat /late/word; {_IDLE}", volumeMounts=[{"name": "late", "mountPath": "/late"}]),
        volumes=[{"name": "late", "secret": {"secretName": "late"}}],
    )
    assert '"late"' in pods.until_event("waiting", "FailedMount")
    pods.core.create_namespaced_secret(pods.namespace, {"metadata": {"name": "late"}, "stringData": {"word": "hello"}})
    pods.until_logged("waiting", "hello")


def test_a_service_accounts_token_opens_the_api(pods: pods_by_hand.Pods) -> None:
    script = (
        "import json, ssl, urllib.request\n"
        "folder = '/var/run/secrets/kubernetes.io/serviceaccount'\n"
        "token = open(f'{folder}/token').read()\n"
        "context = ssl.create_default_context(cafile=f'{folder}/ca.crt')\n"
        "body = json.dumps({'apiVersion': 'authentication.k8s.io/v1', 'kind': 'SelfSubjectReview'}).encode()\n"
        "url = 'https://kubernetes.default.svc/apis/authentication.k8s.io/v1/selfsubjectreviews'\n"
        "headers = {'Authorization': f'Bearer {token}', 'Content-Type': 'application/json'}\n"
        "request = urllib.request.Request(url, body, headers)\n"
        "answer = json.load(urllib.request.urlopen(request, context=context))\n"
        "print(answer['status']['userInfo']['username'])\n"
    )
    container = pods_by_hand.shell("") | {"command": [sys.executable, "-c", script]}
    pods.create("account", container, restartPolicy="Never", automountServiceAccountToken=True)
    pods.until("account", lambda pod: pod["status"]["phase"] in {"Succeeded", "Failed"})
    assert pods.log("account") == f"system:serviceaccount:{pods.namespace}:default\n"


def test_a_root_is_read_only_where_the_pod_says_so(pods: pods_by_hand.Pods) -> None:
    script = "for place in /new /usr/new /shared/new /dev/shm/new /secret/new; do touch $place 2>/dev/null && echo $place; done"
    pods.core.create_namespaced_secret(pods.namespace, {"metadata": {"name": "keys"}, "stringData": {"A": "secret"}})
    said = _run(
        pods,
        f"{script}; cat /secret/A",
        securityContext={"readOnlyRootFilesystem": True},
        volumeMounts=[
            {"name": "shared", "mountPath": "/shared"},
            {"name": "keys", "mountPath": "/secret"},
        ],
        volumes=[{"name": "shared", "emptyDir": {}}, {"name": "keys", "secret": {"secretName": "keys"}}],
    )
    assert said.split() == ["/shared/new", "/dev/shm/new", "secret"]


def test_mounts_leave_no_trace_on_the_machine(pods: pods_by_hand.Pods, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("of the host")
    place = "/etc/tms-test-place"
    said = _run(
        pods,
        f"cat {place}/deep/file; echo changed > {place}/deep/new; ls /etc/hosts",
        volumeMounts=[{"name": "host", "mountPath": f"{place}/deep"}],
        volumes=[{"name": "host", "hostPath": {"path": str(tmp_path), "type": "Directory"}}],
    )
    assert "of the host" in said
    assert "/etc/hosts" in said
    assert (tmp_path / "new").read_text() == "changed\n"
    assert not pathlib.Path(place).exists()


def test_containers_share_a_volume_and_pods_do_not(pods: pods_by_hand.Pods) -> None:
    mounts = [{"name": "shared", "mountPath": "/shared"}, {"name": "shared", "mountPath": "/part", "subPath": "sub"}]
    first = pods_by_hand.shell("mkdir -p /shared/sub; echo hello > /shared/sub/word", "first", volumeMounts=mounts[:1])
    volumes = [{"name": "shared", "emptyDir": {}}]
    said = _run(pods, "cat /part/word; ls /shared", volumeMounts=mounts, volumes=volumes, initContainers=[first])
    assert said.split() == ["hello", "sub"]
