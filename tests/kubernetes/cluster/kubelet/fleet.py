"""All nodes of the fake kubelet and all pods on them: one watch, one task for each pod that has processes."""

from __future__ import annotations

import asyncio
import functools

import structlog

from tests.kubernetes.cluster import layout
from tests.kubernetes.cluster.kubelet import addresses, containers, instant, kube, machines, pods, times

_OVER = {"Succeeded", "Failed"}
_RETRY_S = 0.3

log = structlog.get_logger(__name__)


class NotHereError(Exception):
    """No such node, pod or container; the message names it."""


class Fleet:
    """What runs where. Faults reach in through the methods below `run`."""

    def __init__(self, tools: containers.Tools, shapes: list[machines.Shape]) -> None:
        self.tools = tools
        self.machines = {shape.name: machines.Machine(tools.client, shape, tools.settings.renew_s) for shape in shapes}
        self._pool = addresses.Addresses(layout.POD_RANGE, {shape.name: shape.address for shape in shapes})
        self._instant = instant.InstantPods(tools.client, self._pool)
        self._pods: dict[str, pods.Pod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._frozen: set[str] = set()

    async def run(self) -> None:
        """Registers the nodes and serves their pods, for ever; whatever runs ends with it."""
        watch = kube.Mirror(self.tools.client, "/api/v1/pods", self._see, self._forget, "spec.nodeName!=")
        nodes = kube.Mirror(self.tools.client, "/api/v1/nodes", self._see_node, lambda _node: None)
        try:
            async with asyncio.TaskGroup() as group:
                for machine in self.machines.values():
                    await self._register(machine)
                    group.create_task(machine.run())
                for helper in (watch.run(), nodes.run(), self._instant.run(), self.tools.recorder.run()):
                    group.create_task(helper)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def pod(self, key: str) -> pods.Pod:
        """The pod NAMESPACE/NAME that has processes.

        Raises:
            NotHereError: there is none.
        """
        newest_first = reversed(list(self._pods.values()))  # one deleted by force may still be ending
        found = next((pod for pod in newest_first if pod.key == key), None)
        if found is None:
            raise NotHereError(f"no pod {key} with processes is on these nodes")
        return found

    def container(self, key: str, name: str) -> containers.Container:
        """Raises `NotHereError` where the pod has no such container."""
        found = self.pod(key).find(name)
        if found is None:
            raise NotHereError(f"pod {key} has no container {name}")
        return found

    def keys(self) -> list[str]:
        return sorted([*(pod.key for pod in self._pods.values()), *self._instant.keys()])

    def lose_node(self, name: str, processes: str) -> None:
        """The node falls silent; its processes are `killed`, `frozen`, or go on `running`, unseen."""
        machine = self._machine(name)
        machine.lose()
        for pod in self._on(machine):
            if processes == "killed":
                pod.kill()
            for container in pod.containers:
                if processes == "frozen" and container.process:
                    container.process.freeze()
        if processes == "frozen":
            self._frozen.add(name)

    def restore_node(self, name: str) -> None:
        machine = self._machine(name)
        for pod in self._on(machine):
            for container in pod.containers:
                if name in self._frozen and container.process:
                    container.process.thaw()
            pod.report_anew()
        self._frozen.discard(name)
        machine.restore()
        self._instant.wake(machine)

    def hold_readiness(self, key: str, *, held: bool) -> None:
        if not self._instant.hold(key, held=held):
            for container in self.pod(key).containers:
                container.hold(held=held)

    def evict(self, key: str, message: str) -> None:
        if not self._instant.evict(key, message):
            self.pod(key).evict(message)

    def retry_now(self) -> None:
        """Ends all back-offs."""
        for pod in self._pods.values():
            for container in pod.containers:
                container.retry_now()

    def _machine(self, name: str) -> machines.Machine:
        if name not in self.machines:
            raise NotHereError(f"no node {name}; there are {', '.join(self.machines)}")
        return self.machines[name]

    def _on(self, machine: machines.Machine) -> list[pods.Pod]:
        return [pod for pod in self._pods.values() if pod.machine is machine]

    async def _register(self, machine: machines.Machine) -> None:
        while True:
            try:
                return await machine.register()
            except (kube.ApiError, *kube.AWAY) as error:
                log.info("kubelet.node_not_registered", node=machine.shape.name, error=repr(error))
                await times.pause(_RETRY_S)

    def _see_node(self, node: kube.Json) -> None:
        if machine := self.machines.get(node["metadata"]["name"]):
            machine.see(node)

    def _see(self, pod: kube.Json) -> None:
        machine = self.machines.get(pod["spec"].get("nodeName", ""))
        if machine is None:
            return
        uid = pod["metadata"]["uid"]
        if machine.shape.instant:
            self._instant.see(pod, machine)
        elif uid in self._pods:
            self._pods[uid].see(pod)
        elif pod.get("status", {}).get("phase") not in _OVER or pod["metadata"].get("deletionTimestamp"):
            self._adopt(uid, pod, machine)

    def _adopt(self, uid: str, pod: kube.Json, machine: machines.Machine) -> None:
        known = self._pods[uid] = pods.Pod(self.tools, machine, self._pool, pod)
        if pod["metadata"].get("deletionTimestamp"):
            known.see(pod)
        task = self._tasks[uid] = asyncio.create_task(known.run(), name=f"pod {known.key}")
        task.add_done_callback(functools.partial(self._drop, uid))

    def _drop(self, uid: str, task: asyncio.Task[None]) -> None:
        del self._pods[uid]
        del self._tasks[uid]
        if not task.cancelled() and (error := task.exception()):
            log.error("kubelet.pod_lost", uid=uid, exc_info=error)

    def _forget(self, pod: kube.Json) -> None:
        uid = pod["metadata"]["uid"]
        self._instant.lose(uid)
        if uid in self._pods:
            self._pods[uid].lose()
