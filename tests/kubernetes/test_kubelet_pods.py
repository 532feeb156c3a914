"""Pods on the fake kubelet: order of containers, restarts, probes, ends, and what their statuses say meanwhile."""

from __future__ import annotations

import kubernetes
import pytest

from tests.kubernetes import pods_by_hand
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster.kubelet import faults as kubelet_faults

_IDLE = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
_SHARED: pods_by_hand.Json = {"volumes": [{"name": "shared", "emptyDir": {}}]}
_MOUNT: pods_by_hand.Json = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}


@pytest.fixture
def faults(cluster: cluster_client.Cluster) -> kubelet_faults.Faults:
    result = kubelet_faults.Faults(cluster.directory)
    result.register_image(pods_by_hand.SHELL, [])
    return result


@pytest.fixture
def pods(api: kubernetes.client.ApiClient, namespace: str, faults: kubelet_faults.Faults) -> pods_by_hand.Pods:
    return pods_by_hand.Pods(api, namespace)


def test_a_worker_answers_on_an_address_of_its_own_and_ends_politely(pods: pods_by_hand.Pods) -> None:
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    probe = {"httpGet": {"path": "/v2/health/ready", "port": "http"}, "periodSeconds": 1}
    arguments = [f"--{kind}-address=$(POD_IP)" for kind in ("http", "grpc", "metrics")]
    pods.create(
        "worker",
        {
            "name": "main",
            "image": "registry.example:5000/tms/worker:1.2",
            "args": ["--model-repository=/shared", "--model-control-mode=explicit", *arguments],
            "env": [address],
            "ports": [{"name": "http", "containerPort": 8000}],
            "startupProbe": probe | {"failureThreshold": 30},
            "readinessProbe": probe,
            **_MOUNT,
        },
        **_SHARED | {"terminationGracePeriodSeconds": 20},
    )
    pod = pods.until_ready("worker")
    assert pod["status"]["podIP"].startswith("10.244.")
    assert pod["status"]["podIP"] != pod["status"]["hostIP"]
    assert "worker.ready" in pods.log("worker", tail_lines=1)

    watch = kubernetes.watch.Watch()  # type: ignore[no-untyped-call]  # theirs
    seen = watch.stream(pods.core.list_namespaced_pod, pods.namespace, timeout_seconds=30)  # type: ignore[no-untyped-call]  # theirs
    pods.delete("worker")
    last = next(event["raw_object"] for event in seen if event["type"] == "DELETED")
    assert pods_by_hand.container(last)["state"]["terminated"]["exitCode"] == 0
    assert last["status"]["phase"] == "Succeeded"


def test_init_containers_come_first_and_sidecars_gate_what_follows(pods: pods_by_hand.Pods) -> None:
    note = "echo $HOSTNAME:{0} >> /shared/order"
    sidecar = f"sleep 0.3; {note.format('sidecar')}; touch /shared/up; {_IDLE}"
    gate = {"exec": {"command": ["test", "-f", "/shared/up"]}, "periodSeconds": 1, "failureThreshold": 30}
    pods.create(
        "order",
        pods_by_hand.shell(f"{note.format('main')}; cat /shared/order; {_IDLE}", **_MOUNT),
        initContainers=[
            pods_by_hand.shell(note.format("first"), "first", **_MOUNT),
            pods_by_hand.shell(sidecar, "sidecar", restartPolicy="Always", startupProbe=gate, **_MOUNT),
            pods_by_hand.shell(note.format("second"), "second", **_MOUNT),
        ],
        **_SHARED,
    )
    assert pods.until_logged("order", "main").split() == [
        f"order:{name}" for name in ("first", "sidecar", "second", "main")
    ]
    pod = pods.until_ready("order")
    assert pods_by_hand.condition(pod, "Initialized") == "True"
    assert pods_by_hand.container(pod, "first")["state"]["terminated"]["reason"] == "Completed"
    assert pods_by_hand.container(pod, "sidecar")["started"]


def test_a_job_is_over_with_its_main_container_and_ends_its_sidecar(pods: pods_by_hand.Pods) -> None:
    sidecar = pods_by_hand.shell(_IDLE, "sidecar", restartPolicy="Always")
    pods.create("job", pods_by_hand.shell("echo done"), initContainers=[sidecar], restartPolicy="Never")
    pod = pods.until("job", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert "terminated" in pods_by_hand.container(pod, "sidecar")["state"]
    assert pods_by_hand.condition(pod, "Ready") == "False"


def test_a_failed_job_says_how_it_failed(pods: pods_by_hand.Pods) -> None:
    pods.create("job", pods_by_hand.shell("exit 3"), restartPolicy="Never")
    pod = pods.until("job", lambda pod: pod["status"]["phase"] == "Failed")
    assert pods_by_hand.container(pod)["state"]["terminated"]["exitCode"] == 3


def test_a_container_that_keeps_failing_is_held_back(pods: pods_by_hand.Pods) -> None:
    pods.create("loop", pods_by_hand.shell("echo again; exit 3"))
    pod = pods.until("loop", lambda pod: pods_by_hand.waits_for(pod) == "CrashLoopBackOff")
    said = pods_by_hand.container(pod)
    assert said["lastState"]["terminated"]["exitCode"] == 3
    assert said["restartCount"] >= 1
    assert pod["status"]["phase"] == "Running"
    assert "Back-off restarting failed container main" in pods.until_event("loop", "BackOff")
    assert pods.log("loop", previous=True) == "again\n"


def test_a_command_that_is_not_there_is_a_failed_start(pods: pods_by_hand.Pods) -> None:
    pods.create("none", pods_by_hand.shell("") | {"command": ["/no/such/command"]})
    pod = pods.until("none", lambda pod: pods_by_hand.waits_for(pod) == "CrashLoopBackOff")
    ended = pods_by_hand.container(pod)["lastState"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("StartError", 128)
    assert "/no/such/command" in ended["message"]


def test_an_image_that_is_not_there_is_waited_for(pods: pods_by_hand.Pods, faults: kubelet_faults.Faults) -> None:
    pods.create("absent", pods_by_hand.shell(_IDLE) | {"image": "test/absent:1"})
    pods.until("absent", lambda pod: pods_by_hand.waits_for(pod) == "ErrImagePull")
    pods.until("absent", lambda pod: pods_by_hand.waits_for(pod) == "ImagePullBackOff")
    assert "not found" in pods.until_event("absent", "Failed", "test/absent:1")
    faults.register_image("test/absent", [])
    pods.until_ready("absent")


def test_a_secret_that_is_not_there_is_waited_for(pods: pods_by_hand.Pods) -> None:
    variable = {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "late", "key": "word"}}}
    pods.create("configured", pods_by_hand.shell(f"echo $WORD; {_IDLE}", env=[variable]))
    pod = pods.until("configured", lambda pod: pods_by_hand.waits_for(pod) == "CreateContainerConfigError")
    assert 'secret "late" not found' in pods_by_hand.container(pod)["state"]["waiting"]["message"]
    pods.core.create_namespaced_secret(pods.namespace, {"metadata": {"name": "late"}, "stringData": {"word": "hello"}})
    pods.until_logged("configured", "hello")


def test_readiness_follows_its_probe_and_liveness_restarts(pods: pods_by_hand.Pods) -> None:
    def asks(path: str) -> pods_by_hand.Json:
        return {"exec": {"command": ["test", "-f", path]}, "periodSeconds": 1, "failureThreshold": 1}

    script = f"touch /shared/alive; [ -f /shared/again ] && touch /shared/ready; {_IDLE}"
    breaking = f"until [ -f /shared/ready ]; do sleep 0.05; done; {_IDLE}"
    pods.create(
        "probed",
        pods_by_hand.shell(script, readinessProbe=asks("/shared/ready"), livenessProbe=asks("/shared/alive"), **_MOUNT),
        pods_by_hand.shell(breaking, "other", **_MOUNT),
        pods_by_hand.shell(f"sleep 1.5; touch /shared/again; rm /shared/alive; {_IDLE}", "breaker", **_MOUNT),
        **_SHARED,
    )
    pod = pods.until("probed", lambda pod: pods_by_hand.container(pod).get("started"))
    assert not pods_by_hand.container(pod)["ready"]
    pods.until("probed", lambda pod: pods_by_hand.container(pod)["restartCount"] == 1)
    pods.until_event("probed", "Unhealthy", "Liveness probe failed")
    pod = pods.until_ready("probed")
    assert pods_by_hand.container(pod)["restartCount"] == 1
    assert pods_by_hand.container(pod, "other")["restartCount"] == 0


def test_readiness_gates_are_opened_by_others(pods: pods_by_hand.Pods) -> None:
    pods.create("gated", pods_by_hand.shell(_IDLE), readinessGates=[{"conditionType": "example.com/open"}])
    pod = pods.until("gated", lambda pod: pods_by_hand.condition(pod, "ContainersReady") == "True")
    assert pods_by_hand.condition(pod, "Ready") == "False"
    pods.core.patch_namespaced_pod_status(
        "gated", pods.namespace, {"status": {"conditions": [{"type": "example.com/open", "status": "True"}]}}
    )
    pods.until_ready("gated")


def test_a_deleted_pod_runs_its_hook_then_ends_mains_before_sidecars(pods: pods_by_hand.Pods) -> None:
    folder = {"volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "kept"}}]}
    claim = {
        "metadata": {"name": "kept"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    pods.core.create_namespaced_persistent_volume_claim(pods.namespace, claim)
    says = "trap 'echo {0} >> /shared/end; exit 0' TERM; while :; do sleep 0.05; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /shared/end"]}}}
    pods.create(
        "ending",
        pods_by_hand.shell(says.format("main"), lifecycle=hook, **_MOUNT),
        initContainers=[pods_by_hand.shell(says.format("sidecar"), "sidecar", restartPolicy="Always", **_MOUNT)],
        **folder | {"terminationGracePeriodSeconds": 20},
    )
    pods.until_ready("ending")
    pods.delete("ending")
    pods.until("ending", lambda pod: not pod)
    pods.create("reader", pods_by_hand.shell("cat /shared/end", **_MOUNT), restartPolicy="Never", **folder)
    pods.until("reader", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert pods.log("reader").split() == ["hook", "main", "sidecar"]


def test_a_deaf_container_is_killed_when_its_grace_is_over(
    pods: pods_by_hand.Pods, faults: kubelet_faults.Faults
) -> None:
    key = pods.create("deaf", pods_by_hand.shell("trap '' TERM; while :; do sleep 0.05; done"))
    pods.until_ready("deaf")
    pods.delete("deaf")
    pods.until("deaf", lambda pod: not pod)
    assert key not in faults.pods()


def test_a_deletion_without_grace_ends_everything_at_once(
    pods: pods_by_hand.Pods, faults: kubelet_faults.Faults
) -> None:
    key = pods.create("forced", pods_by_hand.shell(_IDLE), terminationGracePeriodSeconds=600)
    pods.until_ready("forced")
    pid = faults.container_pid(key, "main")
    pods.delete("forced", grace_period_seconds=0)
    pods.until("forced", lambda _pod: key not in faults.pods() and not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - a file of the kernel
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
