"""Kubernetes' own reasons, in the words of the control plane. Pure: reads conditions, states and warnings, nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tms_server.backends.kubernetes import view
from tms_server.ports import backend

Json = dict[str, Any]

_WAITING = {
    "ImagePullBackOff": "ImagePullFailed",
    "ErrImagePull": "ImagePullFailed",
    "ErrImageNeverPull": "ImagePullFailed",
    "InvalidImageName": "ImagePullFailed",
    "RegistryUnavailable": "ImagePullFailed",
    "CrashLoopBackOff": "CrashLoop",
    "CreateContainerConfigError": "Refused",
    "CreateContainerError": "Refused",
    "RunContainerError": "Refused",
}
_EVENTS = {
    "FailedScheduling": "Unschedulable",
    "FailedMount": "MountFailed",
    "FailedAttachVolume": "MountFailed",
    "FailedCreatePodSandBox": "SandboxFailed",
    "Evicted": "Evicted",
    "NodeNotReady": "NodeLost",
}
_QUOTA = re.compile(r"exceeded quota|must specify (limits|requests)")
_GO = re.compile(r"/?&LabelSelector\{.*?Requirement\{[^}]*\},\}")
"""How autoscalers print the selector of a metric; the name of the metric, before it, is enough."""
_LONGEST = 500


def of_group(group: view.GroupView) -> backend.Trouble | None:
    """What stands against the group as a whole: pods that are not let in, else the worst of a pod, else its autoscaler."""
    # Before any pod is ready there is nothing that an autoscaler could read.
    scaler = group.scaler if any(map(ready, group.pods)) else None
    return _not_let_in(group) or _of_pods(group) or of_scaler(scaler)


def of_pod(pod: Json, warnings: Iterable[Json] = ()) -> backend.Trouble | None:
    """What stands against one pod; None while it does what it should or has only just begun."""
    status: Json = pod.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    return (
        _of_end(status, conditions)
        or _of_scheduling(conditions)
        or _of_containers(status)
        or (None if ready(pod) else _of_warnings(warnings))
    )


def of_scaler(scaler: Json | None) -> backend.Trouble | None:
    """Why the autoscaler does not work."""
    conditions = ((scaler or {}).get("status") or {}).get("conditions") or []
    for condition in conditions:
        broken = condition["type"] in ("AbleToScale", "ScalingActive") and condition["status"] == "False"
        # Kubernetes stops an autoscaler at zero replicas on purpose.
        if broken and condition.get("reason") != "ScalingDisabled":
            return _trouble("HpaFailed", condition)
    return None


def ready(pod: Json) -> bool:
    """Whether Services lead to it."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    told = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return told and not pod["metadata"].get("deletionTimestamp")


def lost(pod: Json, node: Json | None) -> bool:
    """Whether it leaves a node that is gone, so that nobody can say when its processes end. `node` is None if unknown."""
    if not pod["metadata"].get("deletionTimestamp"):
        return False
    status: Json = pod.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    return _by_lost_node(status, conditions) or (node is not None and not node_ready(node))


def node_ready(node: Json) -> bool:
    """Whether the node answers."""
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _not_let_in(group: view.GroupView) -> backend.Trouble | None:
    objects = [each for each in (group.deployment, *group.replicasets) if each is not None]
    for found in objects:
        for condition in (found.get("status") or {}).get("conditions") or []:
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return _trouble(_of_refusal(condition.get("message") or ""), condition)
    return None


def _of_refusal(message: str) -> str:
    return "QuotaExceeded" if _QUOTA.search(message) else "Refused"


def _of_pods(group: view.GroupView) -> backend.Trouble | None:
    """Of pods that are wanted; one that leaves or has ended counts only until enough others are ready."""
    staying = [each for each in group.pods if not each["metadata"].get("deletionTimestamp")]
    running = [each for each in staying if (each.get("status") or {}).get("phase") != "Failed"]
    counted = running if sum(map(ready, running)) >= _wanted(group.deployment) else [*running, *staying]
    found = (of_pod(each, group.warnings.get(each["metadata"]["name"], ())) for each in counted or group.pods)
    return next(filter(None, found), None)


def _wanted(deployment: Json | None) -> int:
    wanted = ((deployment or {}).get("spec") or {}).get("replicas")
    return 1 if wanted is None else int(wanted)


def _of_end(status: Json, conditions: Mapping[str, Json]) -> backend.Trouble | None:
    disrupted = conditions.get("DisruptionTarget")
    reason = status.get("reason") or ""
    if _by_lost_node(status, conditions):
        return _trouble("NodeLost", disrupted or status)
    if disrupted is not None and disrupted["status"] == "True":
        return _trouble("Evicted", disrupted)
    if reason == "Evicted":
        return _trouble("Evicted", status)
    if status.get("phase") == "Failed":
        return _trouble("Refused" if reason else "Failed", status)
    return None


def _by_lost_node(status: Json, conditions: Mapping[str, Json]) -> bool:
    disrupted = conditions.get("DisruptionTarget") or {}
    by_control_plane = disrupted.get("reason") in ("DeletionByTaintManager", "DeletionByPodGC")
    return status.get("reason") == "NodeLost" or (disrupted.get("status") == "True" and by_control_plane)


def _of_scheduling(conditions: Mapping[str, Json]) -> backend.Trouble | None:
    scheduled = conditions.get("PodScheduled")
    if scheduled is None or scheduled["status"] != "False":
        return None
    return _trouble("Unschedulable", scheduled)


def _of_containers(status: Json) -> backend.Trouble | None:
    for container in (*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])):
        state, last = container.get("state") or {}, (container.get("lastState") or {}).get("terminated") or {}
        ended = state.get("terminated") or (last if state.get("waiting") else {})
        if ended.get("reason") == "OOMKilled":
            return _of_container("OOMKilled", container, "it used more memory than its limit")
        waiting = state.get("waiting") or {}
        if reason := _WAITING.get(waiting.get("reason") or ""):
            exit_ = f"; it ended with exit code {last['exitCode']}" if "exitCode" in last else ""
            said = f"{waiting['reason']}: {waiting.get('message') or 'no message'}{exit_}"
            return _of_container(reason, container, said)
    return None


def _of_container(reason: str, container: Json, said: str) -> backend.Trouble:
    return backend.Trouble(reason, f"{container['name']}: {said}"[:_LONGEST])


def _of_warnings(warnings: Iterable[Json]) -> backend.Trouble | None:
    for event in reversed(tuple(warnings)):
        if reason := _EVENTS.get(event.get("reason") or ""):
            return _trouble(reason, event)
    return None


def _trouble(reason: str, said: Json) -> backend.Trouble:
    message = said.get("message") or said.get("reason") or reason
    return backend.Trouble(reason, _GO.sub("", str(message))[:_LONGEST])
