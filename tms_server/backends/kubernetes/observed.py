"""What exists of a group, in the words of the port. Pure."""

from __future__ import annotations

from typing import Any

from tms_server.backends.kubernetes import names, reasons, view
from tms_server.model import ids, resources
from tms_server.ports import backend

Json = dict[str, Any]


def of_group(group_id: ids.GroupId, group: view.GroupView) -> backend.Observed:
    """The group with its replicas, those that are leaving included; pods that have ended are none."""
    replicas = tuple(of_pod(each, group) for each in group.pods if not ended(each))
    trouble = reasons.of_group(group)
    return backend.Observed(
        group_id=group_id,
        phase=_phase(replicas),
        restarts=sum(each.restarts for each in replicas),
        message=trouble.message if trouble is not None else "",
        replicas=replicas,
        wanted_replicas=_wanted(group.deployment),
        trouble=trouble,
    )


def of_pod(pod: Json, group: view.GroupView) -> backend.Replica:
    """One replica."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    address = status.get("podIP")
    return backend.Replica(
        id=ids.ReplicaId(name),
        phase=_pod_phase(status),
        ready=reasons.ready(pod),
        halted=_halted(status),
        node=(pod.get("spec") or {}).get("nodeName") or "",
        endpoint=resources.Endpoint(address, names.HTTP_PORT, names.GRPC_PORT, names.METRICS_PORT) if address else None,
        restarts=sum(each.get("restartCount") or 0 for each in _containers(status)),
        trouble=reasons.of_pod(pod, group.warnings.get(name, ())),
    )


def ended(pod: Json) -> bool:
    """Whether none of its processes is left, as far as its node says."""
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def _wanted(deployment: Json | None) -> int:
    if deployment is None:
        return 0
    wanted = (deployment.get("spec") or {}).get("replicas")
    return 1 if wanted is None else int(wanted)


def _phase(replicas: tuple[backend.Replica, ...]) -> backend.Phase:
    phases = {each.phase for each in replicas}
    best = (backend.Phase.RUNNING, backend.Phase.BACKING_OFF, backend.Phase.STARTING)
    return next((each for each in best if each in phases), backend.Phase.STARTING)


def _pod_phase(status: Json) -> backend.Phase:
    states = [each.get("state") or {} for each in _containers(status)]
    if any((each.get("waiting") or {}).get("reason") == "CrashLoopBackOff" for each in states):
        return backend.Phase.BACKING_OFF
    runs = len(states) > 1 and all("running" in each for each in states)
    return backend.Phase.RUNNING if runs else backend.Phase.STARTING


def _halted(status: Json) -> bool:
    """Whether the worker's container does not run; the node has said so, of this container."""
    states = [each.get("state") or {} for each in status.get("containerStatuses") or []]
    return bool(states) and not any("running" in each for each in states)


def _containers(status: Json) -> list[Json]:
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
