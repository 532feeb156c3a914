"""What a pod's status says, from what its containers do: phase, conditions and container statuses. Pure."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import hashlib
import typing

Json = dict[str, typing.Any]


class Kind(enum.Enum):
    """What part a container has in its pod. A sidecar is an init container that always restarts."""

    INIT = "init"
    SIDECAR = "sidecar"
    MAIN = "main"


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Does not run yet, or not again yet."""

    reason: str
    message: str = ""

    def to_json(self) -> Json:
        return {"waiting": {"reason": self.reason} | ({"message": self.message} if self.message else {})}


@dataclasses.dataclass(frozen=True)
class Running:
    """Runs since `started_at`."""

    started_at: str

    def to_json(self) -> Json:
        return {"running": {"startedAt": self.started_at}}


@dataclasses.dataclass(frozen=True)
class Terminated:
    """Ran and ended, or could not be started (exit code 128, reason StartError)."""

    exit_code: int
    reason: str
    started_at: str
    finished_at: str
    container_id: str = ""
    message: str = ""

    def to_json(self) -> Json:
        said = {
            "exitCode": self.exit_code,
            "reason": self.reason,
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
        }
        said |= {"containerID": self.container_id} if self.container_id else {}
        return {"terminated": said | ({"message": self.message} if self.message else {})}


State = Waiting | Running | Terminated


@dataclasses.dataclass
class ContainerView:
    """One container as its pod's status shows it. `last` is how it ended before."""

    name: str
    image: str
    kind: Kind
    state: State
    last: Terminated | None = None
    ready: bool = False
    started: bool = False
    restarts: int = 0
    container_id: str = ""

    @property
    def is_initialized(self) -> bool:
        """Whether the containers after this init container may start."""
        if self.kind is Kind.SIDECAR:
            return self.started
        return isinstance(self.state, Terminated) and self.state.exit_code == 0

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "image": self.image,
            "imageID": image_id(self.image) if self.container_id else "",
            "containerID": self.container_id,
            "state": self.state.to_json(),
            "lastState": self.last.to_json() if self.last else {},
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
        }


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a pod as a whole failed, whatever its containers say: `Evicted` and the like."""

    reason: str
    message: str


@dataclasses.dataclass(frozen=True)
class View:
    """All that a pod's status is made from. `has_ended`: nothing of it will run again, whatever its policy says."""

    containers: collections.abc.Sequence[ContainerView]
    pod_ip: str
    host_ip: str
    started_at: str
    has_sandbox: bool = True
    has_ended: bool = False
    failure: Failure | None = None

    def of(self, *kinds: Kind) -> list[ContainerView]:
        return [container for container in self.containers if container.kind in kinds]


def render(pod: Json, view: View, previous: collections.abc.Mapping[str, Json], now: str) -> Json:
    """The status to patch with. `previous` has the conditions by type as they were, for their last change."""
    status: Json = {
        "observedGeneration": pod["metadata"].get("generation", 0),
        "phase": phase(pod, view),
        "conditions": [_stamped(condition, previous, now) for condition in conditions(pod, view)],
        "hostIP": view.host_ip,
        "hostIPs": [{"ip": view.host_ip}],
        "startTime": view.started_at,
        "initContainerStatuses": [one.to_json() for one in view.of(Kind.INIT, Kind.SIDECAR)],
        "containerStatuses": [one.to_json() for one in view.of(Kind.MAIN)],
    }
    if view.pod_ip:
        status |= {"podIP": view.pod_ip, "podIPs": [{"ip": view.pod_ip}]}
    if view.failure:
        status |= {"reason": view.failure.reason, "message": view.failure.message}
    return status


def phase(pod: Json, view: View) -> str:
    policy = pod["spec"].get("restartPolicy", "Always")
    mains = view.of(Kind.MAIN)
    begun = all(one.last or not isinstance(one.state, Waiting) for one in mains)
    init_failed = policy == "Never" and any(_failed(one) for one in view.of(Kind.INIT))
    if view.failure or init_failed or (view.has_ended and not begun):
        return "Failed"
    if not begun:
        return "Pending"
    if any(isinstance(one.state, Running) for one in view.of(Kind.SIDECAR)):
        return "Running"
    return _phase_of_begun(mains, "Never" if view.has_ended else policy)


def conditions(pod: Json, view: View) -> list[Json]:
    """The kubelet's own conditions, without stamps."""
    now_phase = phase(pod, view)
    ready = _containers_ready(view, now_phase)
    return [
        _condition("PodReadyToStartContainers", met=view.has_sandbox and now_phase in {"Pending", "Running"}),
        _initialized(view, now_phase),
        _pod_ready(pod, ready),
        {"type": "ContainersReady"} | ready,
        _condition("PodScheduled", met=True),
        *_disruption(view),
    ]


def is_ready(status: Json) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or [])


def image_id(image: str) -> str:
    return f"{image.partition('@')[0]}@sha256:{hashlib.sha256(image.encode()).hexdigest()}"


def _phase_of_begun(mains: list[ContainerView], policy: str) -> str:
    if policy == "Always" or not all(isinstance(one.state, Terminated) for one in mains):
        return "Running"
    if not any(_failed(one) for one in mains):
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def _initialized(view: View, now_phase: str) -> Json:
    missing = [one.name for one in view.of(Kind.INIT, Kind.SIDECAR) if not one.is_initialized]
    if now_phase == "Succeeded":
        return _condition("Initialized", met=True, reason="PodCompleted")
    if not missing or all(one.last or isinstance(one.state, Running) for one in view.of(Kind.MAIN)):
        return _condition("Initialized", met=True)  # what has begun stays initialized while a sidecar restarts
    message = f"containers with incomplete status: [{' '.join(missing)}]"
    return _condition("Initialized", met=False, reason="ContainersNotInitialized", message=message)


def _containers_ready(view: View, now_phase: str) -> Json:
    if now_phase in {"Succeeded", "Failed"}:
        return {"status": "False", "reason": "PodCompleted" if now_phase == "Succeeded" else "PodFailed"}
    unready = [one.name for one in view.of(Kind.SIDECAR, Kind.MAIN) if not one.ready]
    unready = [one.name for one in view.of(Kind.INIT) if not one.is_initialized] + unready
    if not unready:
        return {"status": "True"}
    message = f"containers with unready status: [{' '.join(unready)}]"
    return {"status": "False", "reason": "ContainersNotReady", "message": message}


def _pod_ready(pod: Json, containers_ready: Json) -> Json:
    """Ready once all containers are and others have opened the pod's readiness gates."""
    if containers_ready["status"] != "True":
        return {"type": "Ready"} | containers_ready
    seen = {one["type"]: one["status"] for one in pod.get("status", {}).get("conditions") or []}
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    closed = [gate for gate in gates if seen.get(gate) != "True"]
    if not closed:
        return _condition("Ready", met=True)
    message = ", ".join(
        f'corresponding condition of pod readiness gate "{gate}" does not exist or is not True' for gate in closed
    )
    return _condition("Ready", met=False, reason="ReadinessGatesNotReady", message=message)


def _disruption(view: View) -> list[Json]:
    if view.failure is None or view.failure.reason != "Evicted":
        return []
    return [_condition("DisruptionTarget", met=True, reason="TerminationByKubelet", message=view.failure.message)]


def _condition(kind: str, *, met: bool, reason: str = "", message: str = "") -> Json:
    texts = {"reason": reason, "message": message}
    return {"type": kind, "status": "True" if met else "False"} | {key: text for key, text in texts.items() if text}


def _stamped(condition: Json, previous: collections.abc.Mapping[str, Json], now: str) -> Json:
    """With the time of its last change. An absent reason is said as null, or a patch would leave the old one."""
    before = previous.get(condition["type"])
    since = before.get("lastTransitionTime") if before and before["status"] == condition["status"] else None
    return {"reason": None, "message": None} | condition | {"lastTransitionTime": since or now, "lastProbeTime": None}


def _failed(container: ContainerView) -> bool:
    return isinstance(container.state, Terminated) and container.state.exit_code != 0
