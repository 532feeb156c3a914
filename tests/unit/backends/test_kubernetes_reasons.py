"""Kubernetes' own reasons, from statuses as Kubernetes writes them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import kubernetes_api as fake
from tms_server.backends.kubernetes import observed, reasons, view
from tms_server.model import ids
from tms_server.ports import backend

Json = dict[str, Any]
NO_GPU = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


def pod(status: Json, **metadata: Any) -> Json:
    return {"metadata": {"name": "w-1-a", **metadata}, "spec": {"nodeName": "n"}, "status": status}


def event(reason: str, message: str = "said") -> Json:
    return {"reason": reason, "message": message, "type": "Warning"}


def condition(type_: str, status: str, reason: str = "", message: str = "said") -> Json:
    return {"type": type_, "status": status, "reason": reason, "message": message}


def group(*pods: Json, deployment: Json | None = None, **changed: Any) -> view.GroupView:
    parts: Json = {"secret": None, "scaler": None, "replicasets": (), "warnings": {}, **changed}
    return view.GroupView(deployment=deployment, pods=pods, **parts)


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (fake.unscheduled(NO_GPU), "Unschedulable", NO_GPU),
        (fake.waiting("ImagePullBackOff", "Back-off pulling image x"), "ImagePullFailed", "worker: ImagePullBackOff"),
        (fake.waiting("ErrImagePull", "not found"), "ImagePullFailed", "not found"),
        (fake.waiting("InvalidImageName", "bad"), "ImagePullFailed", "bad"),
        (fake.waiting("CrashLoopBackOff", "back-off 10s", exitCode=3, reason="Error"), "CrashLoop", "exit code 3"),
        (fake.waiting("CrashLoopBackOff", "x", exitCode=137, reason="OOMKilled"), "OOMKilled", "memory"),
        (fake.waiting("CreateContainerConfigError", "secret not found"), "Refused", "secret not found"),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "Evicted", "low on memory"),
        ({"phase": "Running", "reason": "NodeLost", "message": "gone"}, "NodeLost", "gone"),
        (
            {"phase": "Running", "conditions": [condition("DisruptionTarget", "True", "EvictionByEvictionAPI")]},
            "Evicted",
            "said",
        ),
        (
            {"phase": "Running", "conditions": [condition("DisruptionTarget", "True", "DeletionByTaintManager")]},
            "NodeLost",
            "said",
        ),
        ({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no"}, "Refused", "no"),
    ],
)
def test_statuses_of_pods_are_told(status: Json, reason: str, message: str) -> None:
    found = reasons.of_pod(pod(status))
    assert found is not None
    assert found.reason == reason
    assert message in found.message


def test_a_pod_that_begins_or_serves_has_no_trouble() -> None:
    assert reasons.of_pod(pod(fake.waiting("ContainerCreating"))) is None
    assert reasons.of_pod(pod({})) is None
    assert reasons.of_pod(pod(fake._running("10.0.0.1", "w-1-a"))) is None


@pytest.mark.parametrize(
    ("warned", "reason"),
    [("FailedScheduling", "Unschedulable"), ("FailedMount", "MountFailed"), ("NodeNotReady", "NodeLost")],
)
def test_warnings_are_told_while_the_pod_does_not_serve(warned: str, reason: str) -> None:
    found = reasons.of_pod(pod(fake.waiting("ContainerCreating")), [event("Unhealthy"), event(warned)])
    assert found == backend.Trouble(reason, "said")
    assert reasons.of_pod(pod(fake._running("10.0.0.1", "w-1-a")), [event(warned)]) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: q, requested: pods=1', "QuotaExceeded"),
        ('pods "x" is forbidden: violates PodSecurity "restricted"', "Refused"),
        ('admission webhook "policy" denied the request', "Refused"),
    ],
)
def test_pods_that_are_not_let_in_are_told(message: str, reason: str) -> None:
    failed = {"status": {"conditions": [condition("ReplicaFailure", "True", "FailedCreate", message)]}}
    for found in (group(deployment=failed), group(replicasets=(failed,))):
        assert reasons.of_group(found) == backend.Trouble(reason, message)


def test_a_pod_that_leaves_does_not_speak_for_the_group() -> None:
    leaving = pod(fake.waiting("CrashLoopBackOff"), deletionTimestamp="2026-01-01T00:00:00Z")
    running = {**pod(fake._running("10.0.0.1", "b")), "metadata": {"name": "b"}}
    assert reasons.of_group(group(leaving, running)) is None
    assert reasons.of_group(group(leaving)) is not None


def test_an_eviction_is_told_until_another_pod_is_ready() -> None:
    evicted = pod({"phase": "Failed", "reason": "Evicted", "message": "low on memory"})
    starting = {**pod({"phase": "Pending"}), "metadata": {"name": "b"}}
    running = {**pod(fake._running("10.0.0.1", "b")), "metadata": {"name": "b"}}
    assert reasons.of_group(group(evicted, starting)) == backend.Trouble("Evicted", "low on memory")
    assert reasons.of_group(group(evicted, running)) is None


def test_an_autoscaler_that_does_not_work_is_told() -> None:
    broken = {"status": {"conditions": [condition("ScalingActive", "False", "FailedGetExternalMetric", "no metric")]}}
    found = reasons.of_scaler(broken)
    assert found is not None
    assert (found.reason, found.message) == ("HpaFailed", "no metric")
    stopped = {"status": {"conditions": [condition("ScalingActive", "False", "ScalingDisabled")]}}
    assert reasons.of_scaler(stopped) is None
    assert reasons.of_scaler(None) is None


def test_an_autoscaler_is_quoted_without_the_notation_of_its_selectors() -> None:
    selector = (
        "&LabelSelector{MatchLabels:map[string]string{lease: l-1,},MatchExpressions:[]LabelSelectorRequirement{},}"
    )
    said = f"unable to get external metric tms/tms_in_flight/{selector}: no metrics returned"
    found = reasons.of_scaler({"status": {"conditions": [condition("ScalingActive", "False", "X", said)]}})
    assert found == backend.Trouble("HpaFailed", "unable to get external metric tms/tms_in_flight: no metrics returned")


def test_an_autoscaler_is_not_believed_before_there_is_anything_to_read() -> None:
    broken = {"status": {"conditions": [condition("ScalingActive", "False", "FailedGetExternalMetric", "no metric")]}}
    serving, starting = pod(fake._running("10.0.0.1", "w-1-a")), pod({"phase": "Pending"})
    assert reasons.of_group(group(starting, scaler=broken)) is None
    found = reasons.of_group(group(serving, scaler=broken))
    assert found is not None
    assert found.reason == "HpaFailed"


def test_a_pod_on_a_lost_node_counts_as_gone_only_once_it_leaves() -> None:
    node = {"status": {"conditions": [condition("Ready", "Unknown")]}}
    running = fake._running("10.0.0.1", "w-1-a")
    assert not reasons.lost(pod(running), node)
    leaving = pod(running, deletionTimestamp="2026-01-01T00:00:00Z")
    assert reasons.lost(leaving, node)
    assert not reasons.lost(leaving, None)
    assert not reasons.lost(leaving, {"status": {"conditions": [condition("Ready", "True")]}})


def test_a_group_is_seen_with_its_replicas() -> None:
    running, held = pod(fake._running("10.244.0.7", "w-1-a")), pod(fake.waiting("CrashLoopBackOff"))
    ended = pod({"phase": "Failed", "reason": "Evicted"})
    deployment = {"spec": {"replicas": 2}}
    found = observed.of_group(ids.GroupId("w-1"), group(running, held, ended, deployment=deployment))
    assert found.phase is backend.Phase.RUNNING
    assert found.wanted_replicas == 2
    assert [(each.phase, each.ready, each.halted) for each in found.replicas] == [
        (backend.Phase.RUNNING, True, False),
        (backend.Phase.BACKING_OFF, False, True),
    ]
    first = found.replicas[0]
    assert first.endpoint is not None
    assert (first.endpoint.host, first.endpoint.http_port, first.node) == ("10.244.0.7", 8000, "n")
