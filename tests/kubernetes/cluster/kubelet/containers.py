"""The life of one container: pull, start, probes, restarts with back-off, end. Reports each change, decides no order.

Nothing begins while the node is lost; what runs goes on.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import signal
import typing

import structlog

from tests.kubernetes.cluster.kubelet import (
    environment,
    images,
    kube,
    machines,
    probes,
    processes,
    recorder,
    status,
    times,
    volumes,
)

_RETRY_S = 1.0
_LOG_BYTES = 64 << 20
_LEAST_STOP_S = 2.0  # what a container gets for its end, even after a hook that took all of the grace period

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times that a real kubelet has longer."""

    backoff_base_s: float = 1.0
    backoff_limit_s: float = 20.0
    renew_s: float = 3.0
    refresh_s: float = 5.0


@dataclasses.dataclass(frozen=True)
class Tools:
    """What all pods use."""

    client: kube.Client
    images: images.Images
    recorder: recorder.Recorder
    settings: Settings
    folder: pathlib.Path


class Home(typing.Protocol):
    """The pod around a container, as far as the container sees it. `pod` is the newest that the API server said."""

    pod: kube.Json
    address: str
    host_address: str
    machine: machines.Machine
    volumes: volumes.Volumes
    folder: pathlib.Path

    def changed(self) -> None:
        """The status is to be written."""

    async def services(self) -> list[kube.Json]:
        """Services whose addresses go into environments."""


class Backoff:
    """Waits that double: none at first, then the base, and from the start again after a long good run."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._next_s = 0.0

    def after(self, run_s: float) -> float:
        if run_s > 2 * self._settings.backoff_limit_s:
            self._next_s = 0.0
        wait_s = self._next_s
        self._next_s = min(max(2 * wait_s, self._settings.backoff_base_s), self._settings.backoff_limit_s)
        return wait_s


class Container:
    """One container of a pod. `view` is what the pod's status says of it."""

    def __init__(self, tools: Tools, home: Home, spec: kube.Json, kind: status.Kind) -> None:
        self.spec = spec
        self.view = status.ContainerView(spec["name"], spec["image"], kind, status.Waiting("PodInitializing"))
        self.process: processes.Process | None = None
        self.started = asyncio.Event()
        self.end_reason: str | None = None  # what the next end shall be called, in place of Error
        self.held = False
        self._tools = tools
        self._home = home
        self._backoff = Backoff(tools.settings)
        self._probed_ready = False
        self._stopping = False
        self.task: asyncio.Task[None] | None = None
        self._retry = asyncio.Event()

    @property
    def folder(self) -> pathlib.Path:
        return self._home.folder / "containers" / self.view.name

    @property
    def log_path(self) -> pathlib.Path:
        return self.folder / str(self.view.restarts) / "log"

    def carry_on(self, said: kube.Json) -> None:
        """Takes over from a kubelet that ended: what ran then has ended with it."""
        self.view.restarts = int(said.get("restartCount", 0)) + (1 if said.get("containerID") else 0)
        if said.get("containerID"):
            begun = said.get("state", {}).get("running", {}).get("startedAt") or times.stamp()
            self.view.last = status.Terminated(137, "Error", begun, times.stamp(), said["containerID"])

    def start(self) -> asyncio.Task[None]:
        """Begins; the task is over once the container has ended for good."""
        self.task = asyncio.create_task(self._run(), name=f"container {self.view.name}")
        self.task.add_done_callback(_tell_of_errors)
        return self.task

    async def stop(self, deadline: float) -> None:
        """Ends the container for good: hook, SIGTERM, and SIGKILL at `deadline` (of the loop's clock)."""
        self._stopping = True
        if self.task is None:
            return
        if self.process is None:
            self.task.cancel()
        else:
            self._event("Normal", "Killing", f"Stopping container {self.view.name}")
            await self._end(self.process, deadline)
        await asyncio.wait([self.task])

    def bound_log(self) -> None:
        """Empties a log that has grown too long."""
        if self.process and self.log_path.stat().st_size > _LOG_BYTES:
            os.truncate(self.log_path, 0)

    def kill(self) -> None:
        """Ends it at once and for good, without a word."""
        self._stopping = True
        if self.process:
            self.process.kill()
        elif self.task:
            self.task.cancel()

    def retry_now(self) -> None:
        """Ends a back-off: the reason for it may be gone."""
        self._retry.set()

    def hold(self, *, held: bool) -> None:
        """Keeps it from being ready, whatever its probe says."""
        self.held = held
        self._judge()

    async def _run(self) -> None:
        while True:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            ended = await self._attempt()
            self._set(ended)
            if self._stopping or not self._restarts(ended):
                return
            await self._home.machine.present.wait()
            await self._wait_before_restart(ended, self._backoff.after(loop.time() - begun))

    async def _attempt(self) -> status.Terminated:
        begun = times.stamp()
        shutil.rmtree(self.folder / str(self.view.restarts - 2), ignore_errors=True)  # only the last run stays
        try:
            entry_point = await self._pull()
            order = await self._order(entry_point)
            self.process = await processes.start(order)
        except processes.StartError as error:
            message = f"failed to create containerd task: {error}"
            self._event("Warning", "Failed", f"Error: {message}")
            return status.Terminated(128, "StartError", begun, times.stamp(), self._new_id(), message)
        try:
            return await self._serve(self.process)
        finally:
            self.process.kill()
            self.process = None

    async def _serve(self, process: processes.Process) -> status.Terminated:
        self.view.container_id = self._new_id()
        begun = times.stamp()
        self._set(status.Running(begun))
        self._event("Normal", "Started", f"Started container {self.view.name}")
        followers = asyncio.create_task(self._watch_over(process), name=f"probes of {self.view.name}")
        followers.add_done_callback(_tell_of_errors)
        try:
            code = await process.wait()
        finally:
            followers.cancel()
            await asyncio.wait([followers])
        reason = self.end_reason or ("Completed" if code == 0 else "Error")
        self.end_reason = None
        return status.Terminated(code, reason, begun, times.stamp(), self.view.container_id)

    async def _pull(self) -> list[str]:
        """Waits for the image, with Kubernetes' own two reasons in turn."""
        backoff = Backoff(self._tools.settings)
        backoff.after(0.0)
        while True:
            await self._home.machine.present.wait()
            try:
                entry_point = self._tools.images.pull(self.view.image)
            except images.PullError as error:
                await self._wait_for_pull(str(error), backoff.after(0.0))
            else:
                self._event("Normal", "Pulled", f'Container image "{self.view.image}" already present on machine')
                return entry_point

    async def _wait_for_pull(self, message: str, wait_s: float) -> None:
        image = self.view.image
        self._event("Warning", "Failed", f'Failed to pull image "{image}": {message}')
        self._event("Warning", "Failed", "Error: ErrImagePull")
        self._set(status.Waiting("ErrImagePull", message))
        await self._wait_for_retry(wait_s / 2)
        self._event("Normal", "BackOff", f'Back-off pulling image "{image}"')
        self._event("Warning", "Failed", "Error: ImagePullBackOff")
        self._set(status.Waiting("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {message}'))
        await self._wait_for_retry(wait_s / 2)

    async def _order(self, entry_point: list[str]) -> processes.Order:
        """Waits for the configuration that the container is made from."""
        while True:
            await self._home.machine.present.wait()
            try:
                return self._compose(entry_point, environment.build(self.spec, self._home.pod, await self._sources()))
            except environment.ConfigurationError as error:
                self._event("Warning", "Failed", f"Error: {error}")
                self._set(status.Waiting("CreateContainerConfigError", str(error)))
            except (kube.ApiError, *kube.AWAY) as error:
                log.info("kubelet.configuration_not_read", container=self.view.name, error=repr(error))
            await self._wait_for_retry(_RETRY_S)

    def _compose(self, entry_point: list[str], variables: dict[str, str]) -> processes.Order:
        pod = self._home.pod
        command = [environment.expand(text, variables) for text in self.spec.get("command") or []] or entry_point
        arguments = [environment.expand(text, variables) for text in self.spec.get("args") or []]
        if not command + arguments:
            raise environment.ConfigurationError("no command specified")
        hostname = str(pod["spec"].get("hostname") or pod["metadata"]["name"])[:63]
        return processes.Order(
            command=[*command, *arguments],
            environment=processes.IMAGE_ENVIRONMENT | {"HOSTNAME": hostname} | variables,
            hostname=hostname,
            folder=self.folder / str(self.view.restarts),
            mounts=self._home.volumes.mounts(self.spec, variables),
            working_directory=self.spec.get("workingDir") or "",
            read_only_root=bool((self.spec.get("securityContext") or {}).get("readOnlyRootFilesystem")),
        )

    async def _sources(self) -> environment.Sources:
        secrets, config_maps = environment.needs(self.spec)
        return environment.Sources(
            secrets={name: await self._data("secrets", name) for name in secrets},
            config_maps={name: await self._data("configmaps", name) for name in config_maps},
            services=await self._home.services(),
            pod_ip=self._home.address,
            host_ip=self._home.host_address,
        )

    async def _data(self, plural: str, name: str) -> dict[str, bytes] | None:
        namespace = self._home.pod["metadata"]["namespace"]
        try:
            return environment.data_of(await self._tools.client.get(f"/api/v1/namespaces/{namespace}/{plural}/{name}"))
        except kube.ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _watch_over(self, process: processes.Process) -> None:
        """Hook after the start, start-up probe, then readiness and liveness side by side."""
        target = probes.Target(self.spec, process, self._home.address)
        hook = (self.spec.get("lifecycle") or {}).get("postStart")
        if hook and (complaint := await probes.check(hook, target, self._grace_s())):
            self._event("Warning", "FailedPostStartHook", complaint)
            await self._end_and_restart(process, None, "FailedPostStartHook")
            return
        await self._follow("startupProbe", target, self._on_startup)
        self._on_startup(passed=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow("readinessProbe", target, self._on_readiness))
            group.create_task(self._follow("livenessProbe", target, lambda *, passed: None))

    def _on_startup(self, *, passed: bool) -> None:
        if passed:
            self.view.started = True
            self._probed_ready = "readinessProbe" not in self.spec
            self.started.set()
            self._judge()

    def _on_readiness(self, *, passed: bool) -> None:
        self._probed_ready = passed
        self._judge()

    async def _follow(self, name: str, target: probes.Target, on_verdict: collections.abc.Callable[..., None]) -> None:
        """Follows one probe. A start-up probe is over with its first success; a failed one of the others but
        readiness ends the container."""
        if name not in self.spec:
            return
        label = name.removesuffix("Probe").capitalize()
        probe = probes.Probe.parse(self.spec[name])
        async for verdict, complaint in probes.follow(probe, target, self._home.machine.present):
            if complaint:
                self._event("Warning", "Unhealthy", f"{label} probe failed: {complaint}")
            if verdict is None or (self._stopping and name != "readinessProbe"):
                continue
            on_verdict(passed=verdict)
            if name == "startupProbe" and verdict:
                return
            if name != "readinessProbe" and not verdict:
                await self._end_and_restart(target.process, self.spec[name], f"failed {label.lower()} probe")

    async def _end_and_restart(self, process: processes.Process, probe: kube.Json | None, why: str) -> None:
        self._event("Normal", "Killing", f"Container {self.view.name} {why}, will be restarted")
        grace_s = float((probe or {}).get("terminationGracePeriodSeconds") or self._grace_s())
        await self._end(process, asyncio.get_running_loop().time() + grace_s)

    async def _end(self, process: processes.Process, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook and deadline > loop.time():
            target = probes.Target(self.spec, process, self._home.address)
            await self._run_hook(hook, target, process, deadline)
            deadline = max(deadline, loop.time() + _LEAST_STOP_S)
        if deadline > loop.time():
            process.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await process.wait()
        process.kill()
        await process.wait()

    async def _run_hook(
        self, hook: kube.Json, target: probes.Target, process: processes.Process, deadline: float
    ) -> None:
        """Runs the hook before the end, as long as there is something to end."""
        limit_s = deadline - asyncio.get_running_loop().time()
        asked = asyncio.create_task(probes.check(hook, target, limit_s))
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done() and (complaint := asked.result()):
                self._event("Warning", "FailedPreStopHook", f"PreStopHook failed: {complaint}")
        finally:
            asked.cancel()
            ended.cancel()

    async def _wait_before_restart(self, ended: status.Terminated, wait_s: float) -> None:
        self.view.last = ended
        if wait_s:
            metadata = self._home.pod["metadata"]
            where = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
            self._event("Warning", "BackOff", f"Back-off restarting failed container {self.view.name} in pod {where}")
            text = f"back-off {wait_s:g}s restarting failed container={self.view.name} pod={where}"
            self._set(status.Waiting("CrashLoopBackOff", text))
            await self._wait_for_retry(wait_s)
        self.view.restarts += 1

    async def _wait_for_retry(self, limit_s: float) -> None:
        self._retry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._retry.wait()

    def _restarts(self, ended: status.Terminated) -> bool:
        if self.view.kind is status.Kind.SIDECAR:
            return True
        policy = self._home.pod["spec"].get("restartPolicy", "Always")
        if self.view.kind is status.Kind.INIT and ended.exit_code == 0:
            return False
        return policy == "Always" or (policy == "OnFailure" and ended.exit_code != 0)

    def _set(self, state: status.State) -> None:
        """A container that does not run is neither started nor ready, whatever it was a moment ago."""
        self.view.state = state
        self.view.started = False
        self._probed_ready = False
        self.started.clear()
        self._judge()

    def _judge(self) -> None:
        running = isinstance(self.view.state, status.Running)
        done = self.view.kind is status.Kind.INIT and self.view.is_initialized
        self.view.ready = done or (running and self.view.started and self._probed_ready and not self.held)
        self._home.changed()

    def _new_id(self) -> str:
        identity = f"{self._home.pod['metadata']['uid']}/{self.view.name}/{self.view.restarts}"
        return f"fake://{hashlib.sha256(identity.encode()).hexdigest()}"

    def _grace_s(self) -> float:
        grace_s = self._home.pod["spec"].get("terminationGracePeriodSeconds")
        return 30.0 if grace_s is None else float(grace_s)

    def _event(self, kind: str, reason: str, message: str) -> None:
        group = "containers" if self.view.kind is status.Kind.MAIN else "initContainers"
        write = self._tools.recorder.warn if kind == "Warning" else self._tools.recorder.normal
        write(self._home.pod, reason, message, f"spec.{group}{{{self.view.name}}}")


def _tell_of_errors(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("kubelet.container_lost", container=task.get_name(), exc_info=error)
