from __future__ import annotations

import dataclasses
import typing

import pytest

from tests.kubernetes.cluster.kubelet import status

_NOW = "2026-01-01T00:00:00Z"
_RUNNING = status.Running(_NOW)
_WAITING = status.Waiting("ContainerCreating")


def _ended(code: int) -> status.Terminated:
    return status.Terminated(code, "Completed" if code == 0 else "Error", _NOW, _NOW)


def _container(state: status.State, kind: status.Kind = status.Kind.MAIN, **fields: typing.Any) -> status.ContainerView:
    running = isinstance(state, status.Running)
    return status.ContainerView(kind.value, "image", kind, state, **{"ready": running, "started": running} | fields)


def _view(*containers: status.ContainerView, **fields: typing.Any) -> status.View:
    return status.View(containers, "10.244.1.2", "10.244.1.1", _NOW, **fields)


def _pod(policy: str = "Always", **spec: typing.Any) -> status.Json:
    return {"metadata": {"generation": 3}, "spec": {"restartPolicy": policy, **spec}}


def _said(pod: status.Json, view: status.View) -> dict[str, status.Json]:
    return {one["type"]: one for one in status.conditions(pod, view)}


@pytest.mark.parametrize(
    ("policy", "states", "expected"),
    [
        ("Always", [_WAITING], "Pending"),
        ("Always", [_RUNNING, _WAITING], "Pending"),
        ("Always", [_RUNNING], "Running"),
        ("Always", [_ended(0)], "Running"),
        ("OnFailure", [_ended(1)], "Running"),
        ("OnFailure", [_ended(0)], "Succeeded"),
        ("Never", [_ended(0), _RUNNING], "Running"),
        ("Never", [_ended(0), _ended(2)], "Failed"),
    ],
)
def test_phases_follow_the_containers_and_the_policy(policy: str, states: list[status.State], expected: str) -> None:
    assert status.phase(_pod(policy), _view(*map(_container, states))) == expected


def test_a_container_that_waits_for_its_restart_leaves_the_pod_running() -> None:
    view = _view(_container(status.Waiting("CrashLoopBackOff"), last=_ended(1)))
    assert status.phase(_pod(), view) == "Running"


def test_a_pod_that_has_ended_is_over_whatever_its_policy_says() -> None:
    assert status.phase(_pod(), _view(_container(_ended(0)), has_ended=True)) == "Succeeded"
    assert status.phase(_pod(), _view(_container(_ended(137)), has_ended=True)) == "Failed"
    assert status.phase(_pod(), _view(_container(_WAITING), has_ended=True)) == "Failed"


def test_a_pod_is_not_over_while_its_sidecar_runs() -> None:
    sidecar = _container(_RUNNING, status.Kind.SIDECAR)
    assert status.phase(_pod("Never"), _view(sidecar, _container(_ended(0)))) == "Running"


def test_a_failed_init_container_fails_a_pod_that_never_restarts() -> None:
    view = _view(_container(_ended(1), status.Kind.INIT), _container(_WAITING))
    assert status.phase(_pod("Never"), view) == "Failed"
    assert status.phase(_pod("Always"), view) == "Pending"


def test_readiness_names_the_containers_that_miss() -> None:
    sidecar = _container(_RUNNING, status.Kind.SIDECAR, ready=False)
    said = _said(_pod(), _view(sidecar, _container(_RUNNING)))
    assert said["Ready"]["status"] == "False"
    assert said["ContainersReady"]["message"] == "containers with unready status: [sidecar]"


def test_a_gate_holds_the_pod_but_not_its_containers() -> None:
    pod = _pod(readinessGates=[{"conditionType": "x/open"}])
    said = _said(pod, _view(_container(_RUNNING)))
    assert (said["ContainersReady"]["status"], said["Ready"]["status"]) == ("True", "False")
    pod["status"] = {"conditions": [{"type": "x/open", "status": "True"}]}
    assert _said(pod, _view(_container(_RUNNING)))["Ready"]["status"] == "True"


def test_an_eviction_says_so_and_why() -> None:
    failure = status.Failure("Evicted", "too little memory")
    said = status.render(_pod(), _view(_container(_RUNNING), failure=failure), {}, _NOW)
    assert (said["phase"], said["reason"], said["message"]) == ("Failed", "Evicted", "too little memory")
    assert {one["type"] for one in said["conditions"]} >= {"DisruptionTarget"}


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    view = _view(_container(_RUNNING))
    before = {one["type"]: one for one in status.render(_pod(), view, {}, _NOW)["conditions"]}
    unready = dataclasses.replace(view, containers=[_container(_RUNNING, ready=False)])
    after = {one["type"]: one for one in status.render(_pod(), unready, before, "later")["conditions"]}
    assert after["Ready"]["lastTransitionTime"] == "later"
    assert after["Initialized"]["lastTransitionTime"] == _NOW
