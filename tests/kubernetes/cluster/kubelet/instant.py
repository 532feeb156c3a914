"""Pods without processes: Running and Ready with one write, gone with another. For thousands of pods at a time.

Writes are coalesced per pod and made by a few workers; nothing is remembered but the pods that are here.
"""

from __future__ import annotations

import asyncio
import dataclasses

import structlog

from tests.kubernetes.cluster.kubelet import addresses, kube, machines, status, times

_WORKERS = 8
_RETRY_S = 0.3

log = structlog.get_logger(__name__)


@dataclasses.dataclass
class _Pod:
    """A pod on an instant node, and whether a test keeps it from being ready."""

    pod: kube.Json
    machine: machines.Machine
    started_at: str
    address: str = ""
    held: bool = False
    failure: status.Failure | None = None


class InstantPods:
    """All pods of instant nodes."""

    def __init__(self, client: kube.Client, pool: addresses.Addresses) -> None:
        self._client = client
        self._pool = pool
        self._pods: dict[str, _Pod] = {}
        self._due: dict[str, None] = {}
        self._more = asyncio.Semaphore(0)

    def see(self, pod: kube.Json, machine: machines.Machine) -> None:
        known = self._pods.get(pod["metadata"]["uid"])
        if known is None:
            started_at = pod.get("status", {}).get("startTime") or times.stamp()
            known = self._pods[pod["metadata"]["uid"]] = _Pod(pod, machine, started_at)
        known.pod = pod
        if pod["metadata"].get("deletionTimestamp") or not _is_told(known):
            self._wake(pod["metadata"]["uid"])

    def lose(self, uid: str) -> None:
        """The object is gone."""
        known = self._pods.pop(uid, None)
        if known and known.address:
            self._pool.give_back(known.address)

    def wake(self, machine: machines.Machine) -> None:
        """The node is back: looks at all of its pods."""
        for uid, known in self._pods.items():
            if known.machine is machine:
                self._wake(uid)

    def hold(self, key: str, *, held: bool) -> bool:
        """Keeps the pod NAMESPACE/NAME from being ready, or lets it be; tells whether it is here."""
        return self._change(key, "held", held)

    def evict(self, key: str, message: str) -> bool:
        return self._change(key, "failure", status.Failure("Evicted", message))

    def keys(self) -> list[str]:
        return [_key(known.pod) for known in self._pods.values()]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(_WORKERS):
                group.create_task(self._work())

    def _change(self, key: str, field: str, value: object) -> bool:
        for uid, known in self._pods.items():
            if _key(known.pod) == key:
                setattr(known, field, value)
                self._wake(uid)
                return True
        return False

    def _wake(self, uid: str) -> None:
        if uid not in self._due:
            self._due[uid] = None
            self._more.release()

    async def _work(self) -> None:
        while True:
            await self._more.acquire()
            uid = next(iter(self._due))
            del self._due[uid]
            known = self._pods.get(uid)
            if known and known.machine.present.is_set():
                await self._settle(uid, known)

    async def _settle(self, uid: str, known: _Pod) -> None:
        try:
            if known.pod["metadata"].get("deletionTimestamp"):
                body = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
                await self._client.delete(_path(known.pod), body)
            else:
                await self._report(uid, known)
        except kube.ApiError as error:
            if error.passing:
                await self._settle_later(uid)
        except kube.AWAY as error:
            log.info("kubelet.instant_pod_delayed", error=repr(error))
            await self._settle_later(uid)

    async def _settle_later(self, uid: str) -> None:
        await times.pause(_RETRY_S)
        self._wake(uid)

    async def _report(self, uid: str, known: _Pod) -> None:
        if not known.address:
            shape, wish = known.machine.shape, known.pod.get("status", {}).get("podIP")
            known.address = self._pool.take(shape.name, wish)
        previous = {one["type"]: one for one in known.pod.get("status", {}).get("conditions") or []}
        said = status.render(known.pod, _view(known), previous, times.stamp())
        await self._client.patch(f"{_path(known.pod)}/status", {"metadata": {"uid": uid}, "status": said})


def _is_told(known: _Pod) -> bool:
    """Whether the API server has what this kubelet says of the pod."""
    said = known.pod.get("status", {})
    view = _view(known)
    ready = next(one for one in status.conditions(known.pod, view) if one["type"] == "Ready")
    same_ready = status.is_ready(said) == (ready["status"] == "True")
    return bool(same_ready and said.get("phase") == status.phase(known.pod, view) and said.get("podIP"))


def _view(known: _Pod) -> status.View:
    views = [
        _container(known, spec, status.Kind.SIDECAR if spec.get("restartPolicy") == "Always" else status.Kind.INIT)
        for spec in known.pod["spec"].get("initContainers") or []
    ]
    views += [_container(known, spec, status.Kind.MAIN) for spec in known.pod["spec"]["containers"]]
    return status.View(
        containers=views,
        pod_ip=known.address,
        host_ip=known.machine.shape.address,
        started_at=known.started_at,
        failure=known.failure,
    )


def _container(known: _Pod, spec: kube.Json, kind: status.Kind) -> status.ContainerView:
    is_over = kind is status.Kind.INIT or known.failure is not None
    identity = f"fake://{known.pod['metadata']['uid']}/{spec['name']}"
    ended = status.Terminated(
        0 if kind is status.Kind.INIT else 137,
        "Completed" if kind is status.Kind.INIT else "Error",
        known.started_at,
        known.started_at,
        identity,
    )
    return status.ContainerView(
        name=spec["name"],
        image=spec["image"],
        kind=kind,
        state=ended if is_over else status.Running(known.started_at),
        ready=kind is status.Kind.INIT or not (is_over or known.held),
        started=not is_over,
        container_id=identity,
    )


def _key(pod: kube.Json) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _path(pod: kube.Json) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
