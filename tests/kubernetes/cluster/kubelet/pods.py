"""The life of one pod: volumes, containers in their order, status to the API server, end by deletion or eviction.

The status that the API server has may be older than the pod by as long as the server is away; it is never ahead.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import dataclasses
import shutil

import structlog

from tests.kubernetes.cluster.kubelet import (
    addresses,
    containers,
    environment,
    kube,
    machines,
    status,
    times,
)
from tests.kubernetes.cluster.kubelet import volumes as volume_drivers

_RETRY_S = 0.5

log = structlog.get_logger(__name__)


@dataclasses.dataclass
class _End:
    """That a pod shall end, and how: `failure` leaves the object in place, else it is deleted."""

    asked: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    grace_s: float = 0.0
    failure: status.Failure | None = None
    is_gone: bool = False


class Pod:
    """A pod with processes. `pod` is the newest object that the API server said."""

    def __init__(
        self, tools: containers.Tools, machine: machines.Machine, pool: addresses.Addresses, pod: kube.Json
    ) -> None:
        self.pod = pod
        self.machine = machine
        self.host_address = machine.shape.address
        self.address = ""
        self.folder = tools.folder / "pods" / pod["metadata"]["uid"]
        self.volumes = volume_drivers.Volumes(tools.client, self, self.folder / "volumes")
        self._tools = tools
        self._pool = pool
        self._end = _End()
        self._deletion = asyncio.Event()
        self._dirty = asyncio.Event()
        self._turn = asyncio.Lock()
        self._written: kube.Json | None = None
        self._conditions = {one["type"]: one for one in pod.get("status", {}).get("conditions") or []}
        self._started_at = pod.get("status", {}).get("startTime") or times.stamp()
        self._has_begun = False
        self._has_sandbox = False
        self._has_ended = False
        self._failure: status.Failure | None = None
        self.containers = [*self._make("initContainers"), *self._make("containers")]

    @property
    def key(self) -> str:
        return f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"

    def see(self, pod: kube.Json) -> None:
        """Takes a newer object: a deletion, opened readiness gates, a status that somebody else wrote."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._ask_for_end(float(pod["metadata"].get("deletionGracePeriodSeconds") or 0))
            self._deletion.set()
        if self._written and status.is_ready(self._written) != status.is_ready(pod.get("status", {})):
            self._written = None
        self.changed()

    def lose(self) -> None:
        """The object is gone, with or without us: everything of the pod ends at once."""
        self._end.is_gone = True
        self._end.asked.set()
        self._deletion.set()
        self.kill()

    def evict(self, message: str) -> None:
        self._end.failure = status.Failure("Evicted", message)
        self._tools.recorder.warn(self.pod, "Evicted", message)
        self._ask_for_end(0.0)

    def kill(self) -> None:
        """Kills the processes, as the loss of the node or of the object does."""
        for container in self.containers:
            if container.process:
                container.process.kill()

    def report_anew(self) -> None:
        """Writes the status once more: somebody may have written another one meanwhile."""
        self._written = None
        self.changed()

    def changed(self) -> None:
        self._dirty.set()

    async def services(self) -> list[kube.Json]:
        namespace = self.pod["metadata"]["namespace"]
        master = await self._tools.client.get("/api/v1/namespaces/default/services/kubernetes")
        if not self.pod["spec"].get("enableServiceLinks", True):
            return [master]
        own = await self._tools.client.get(f"/api/v1/namespaces/{namespace}/services", resourceVersion="0")
        return [*own["items"], master]

    def find(self, container: str) -> containers.Container | None:
        return next((one for one in self.containers if one.view.name == container), None)

    async def run(self) -> None:
        """Lives until the object is gone."""
        helpers = [asyncio.create_task(self._write_statuses()), asyncio.create_task(self._keep_house())]
        try:
            await self._live_until_asked()
            await self._stop_all()
            await self._deletion.wait()
            await self._delete()
        finally:
            for helper in helpers:
                helper.cancel()
            for container in self.containers:
                container.kill()
            await asyncio.gather(*helpers, *self._tasks(), return_exceptions=True)
            self._clean_up()

    async def _live_until_asked(self) -> None:
        if self._end.asked.is_set():  # what ran has ended with the kubelet before this one
            return
        life = asyncio.create_task(self._live())
        asked = asyncio.create_task(self._end.asked.wait())
        try:
            await asyncio.wait({life, asked}, return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                life.result()
                await asked
        finally:
            life.cancel()
            asked.cancel()
            await asyncio.wait({life, asked})

    async def _live(self) -> None:
        """What a pod does when nobody disturbs it: prepare, initialise, run, and end its sidecars when it is done."""
        await self.machine.present.wait()
        self._has_begun = True
        self._take_address()
        await self._prepare_volumes()
        self._has_sandbox = True
        self.changed()
        if not await self._initialise():
            return
        await asyncio.wait([one.start() for one in self._of(status.Kind.MAIN)])
        await self._stop_sidecars(asyncio.get_running_loop().time() + self._grace_s())

    async def _initialise(self) -> bool:
        for container in self._of(status.Kind.INIT, status.Kind.SIDECAR):
            ended = container.start()
            if container.view.kind is status.Kind.SIDECAR:
                await container.started.wait()
                continue
            await asyncio.wait([ended])
            if not container.view.is_initialized:
                return False
        return True

    def _take_address(self) -> None:
        if self.pod["spec"].get("hostNetwork"):
            self.address = self.host_address
            return
        self.address = self._pool.take(self.machine.shape.name, self.pod.get("status", {}).get("podIP"))

    async def _prepare_volumes(self) -> None:
        while True:
            try:
                await self.volumes.prepare()
            except (volume_drivers.MountError, environment.ConfigurationError) as error:
                self._tools.recorder.warn(self.pod, "FailedMount", str(error))
            except (kube.ApiError, *kube.AWAY) as error:
                log.info("kubelet.volumes_not_read", pod=self.key, error=repr(error))
            else:
                return
            self.changed()
            await times.pause(_RETRY_S)
            await self.machine.present.wait()

    async def _stop_all(self) -> None:
        """Main containers first and together, then sidecars, the last one first."""
        if not self._end.is_gone:
            await self.machine.present.wait()
        deadline = asyncio.get_running_loop().time() + (0.0 if self._end.is_gone else self._end.grace_s)
        self._failure = self._end.failure
        self.changed()
        await asyncio.gather(*(one.stop(deadline) for one in self._of(status.Kind.MAIN, status.Kind.INIT)))
        await self._stop_sidecars(deadline)
        self._has_ended = True
        self.changed()

    async def _stop_sidecars(self, deadline: float) -> None:
        for container in reversed(self._of(status.Kind.SIDECAR)):
            await container.stop(deadline)

    async def _keep_house(self) -> None:
        """Brings volumes up to date and bounds the logs, for ever."""
        while True:
            await times.pause(self._tools.settings.refresh_s)
            await self.machine.present.wait()
            await self.volumes.refresh()
            for container in self.containers:
                container.bound_log()

    async def _delete(self) -> None:
        """Says that all has ended and lets the object go."""
        metadata = self.pod["metadata"]
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        while not self._end.is_gone:
            await self.machine.present.wait()
            try:
                await self._write_status()
                await self._tools.client.delete(_path(self.pod), body)
            except kube.ApiError as error:
                if not error.passing:
                    return
            except kube.AWAY as error:
                log.info("kubelet.pod_not_deleted", pod=self.key, error=repr(error))
            else:
                return
            await times.pause(_RETRY_S)

    async def _write_statuses(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self.machine.present.wait()
            try:
                await self._write_status()
            except (kube.ApiError, *kube.AWAY) as error:
                if isinstance(error, kube.ApiError) and not error.passing:
                    log.info("kubelet.status_refused", pod=self.key, error=repr(error))
                    continue
                self.changed()
                await times.pause(_RETRY_S)

    async def _write_status(self) -> None:
        async with self._turn:  # an older status must not arrive after a newer one
            written = self._render()
            if written == self._written or self._end.is_gone or not self._has_begun:
                return
            body = {"metadata": {"uid": self.pod["metadata"]["uid"]}, "status": written}
            await self._tools.client.patch(f"{_path(self.pod)}/status", body)
            self._written = written
            self._conditions |= {one["type"]: one for one in written["conditions"]}

    def _render(self) -> kube.Json:
        view = status.View(
            containers=[one.view for one in self.containers],
            pod_ip=self.address,
            host_ip=self.host_address,
            started_at=self._started_at,
            has_sandbox=self._has_sandbox,
            has_ended=self._has_ended,
            failure=self._failure,
        )
        return status.render(self.pod, view, self._conditions, times.stamp())

    def _ask_for_end(self, grace_s: float) -> None:
        if not self._end.asked.is_set():
            self._end.grace_s = grace_s
        self._end.asked.set()

    def _make(self, field: str) -> collections.abc.Iterator[containers.Container]:
        said = {one["name"]: one for one in self._said_before()}
        for spec in self.pod["spec"].get(field) or []:
            container = containers.Container(self._tools, self, spec, _kind(field, spec))
            if field == "containers" and not self.pod["spec"].get("initContainers"):
                container.view.state = status.Waiting("ContainerCreating")
            container.carry_on(said.get(spec["name"], {}))
            yield container

    def _said_before(self) -> list[kube.Json]:
        before = self.pod.get("status", {})
        return [*(before.get("initContainerStatuses") or []), *(before.get("containerStatuses") or [])]

    def _of(self, *kinds: status.Kind) -> list[containers.Container]:
        return [one for one in self.containers if one.view.kind in kinds]

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [one.task for one in self.containers if one.task]

    def _grace_s(self) -> float:
        return float(self.pod["spec"].get("terminationGracePeriodSeconds") or 0)

    def _clean_up(self) -> None:
        if self.address and self.address != self.host_address:
            self._pool.give_back(self.address)
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)


def _kind(field: str, spec: kube.Json) -> status.Kind:
    if field == "containers":
        return status.Kind.MAIN
    return status.Kind.SIDECAR if spec.get("restartPolicy") == "Always" else status.Kind.INIT


def _path(pod: kube.Json) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
