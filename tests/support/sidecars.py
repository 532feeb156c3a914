"""Sidecars without workers: they speak the real stream to a real server and say that they loaded whatever is wanted.

One `SimulatedSidecar` stands for one worker; `Sidecars` keeps one for every replica of a group that a FakeBackend runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
from google.protobuf import timestamp_pb2

from protos.tms.v1 import agent_pb2, agent_pb2_grpc, common_pb2
from tms_server import clock as clock_module
from tms_server.model import ids
from tms_server.ports import backend as backend_module
from tms_server.testing import backend as fake

PERIOD_S = 0.05
"""Real time between reports; the wire's interval is for real sidecars."""


@dataclasses.dataclass(slots=True)
class SimulatedModel:
    """A model as the sidecar tells of it."""

    wanted: agent_pb2.DesiredModel
    state: common_pb2.ModelState.ValueType = common_pb2.MODEL_STATE_LOADING
    inference_count: int = 0
    in_flight: int = 0
    last_inference: dt.datetime | None = None
    reason: str = ""
    message: str = ""
    retryable: bool = False


class SimulatedSidecar:
    """A real client of the Agents stream. Knobs may be turned at any time; what they change is reported at once."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        spec: backend_module.LaunchSpec,
        clock: clock_module.Clock,
        replica: ids.ReplicaId = ids.ONLY_REPLICA,
    ) -> None:
        self.spec = spec
        self.replica = replica
        self.models: dict[str, SimulatedModel] = {}
        self.desired: agent_pb2.Desired | None = None
        self.incarnation = 1
        self.server_ready = True
        self.activity_known = True
        self.told: list[agent_pb2.Desired] = []
        self.dismissed = False
        """The server said that this worker is not wanted any more."""
        self._stub = agent_pb2_grpc.AgentsStub(channel)
        self._clock = clock
        self._held: set[str] = set()
        self._failing: dict[str, tuple[str, str, bool]] = {}
        self._keeping = False
        self._muted = False
        self._stirred = asyncio.Event()

    # The knobs.

    def hold(self, name: str) -> None:
        """The model goes on loading until `finish`."""
        self._held.add(name)

    def finish(self, name: str) -> None:
        """Ends `hold` and `fail`."""
        self._held.discard(name)
        self._failing.pop(name, None)
        self._settle()

    def fail(
        self, name: str, reason: str = "LoadFailed", message: str = "bad bytes", *, retryable: bool = False
    ) -> None:
        """The model cannot be loaded."""
        self._failing[name] = (reason, message, retryable)
        self._settle()

    def keep(self, *, keeping: bool = True) -> None:
        """Models that are not wanted any more stay loaded (draining) while keeping."""
        self._keeping = keeping
        self._settle()

    def use(self, name: str, times: int = 1) -> None:
        """The model answered requests just now."""
        model = self.models[name]
        model.inference_count += times
        model.last_inference = self._clock.now()
        self._stirred.set()

    def in_flight(self, name: str, requests: int) -> None:
        """So many requests are in the server now."""
        self.models[name].in_flight = requests
        self._stirred.set()

    def mute(self, *, muted: bool = True) -> None:
        """Stays connected and says nothing."""
        self._muted = muted
        self._stirred.set()

    def crash(self) -> None:
        """The pair starts anew and has forgotten everything but its id."""
        self.incarnation += 1
        self.models = {}
        self.desired = None
        self._stirred.set()

    # The stream.

    async def run(self) -> None:
        """Stays connected until cancelled or dismissed."""
        while not self.dismissed:
            try:
                await self._connected()
            except grpc.aio.AioRpcError as error:
                self.dismissed = error.code() is grpc.StatusCode.NOT_FOUND
                if not self.dismissed:
                    await self._rest()

    async def _connected(self) -> None:
        metadata = [("tms-worker-id", self.spec.group_id), ("authorization", f"Bearer {self.spec.token}")]
        if self.replica:
            metadata.append(("tms-replica-id", self.replica))
        call = self._stub.Connect(self._say(self.incarnation), metadata=tuple(metadata))
        async for message in call:
            self.desired = message.desired
            self.told.append(message.desired)
            self._settle()

    async def _say(self, incarnation: int) -> AsyncIterator[agent_pb2.AgentMessage]:
        hello = agent_pb2.Hello(incarnation=f"{self.spec.group_id}/{incarnation}", version="simulated")
        yield agent_pb2.AgentMessage(hello=hello)
        while incarnation == self.incarnation:
            if not self._muted:
                yield agent_pb2.AgentMessage(report=self.report())
                self._advance()
            await self._rest()

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PERIOD_S):
                await self._stirred.wait()
        self._stirred.clear()

    def report(self) -> agent_pb2.Report:
        """What it would say now."""
        desired = self.desired or agent_pb2.Desired()
        return agent_pb2.Report(
            epoch=desired.epoch,
            generation=desired.generation,
            server_ready=self.server_ready,
            models=map(self._reported, self.models.values()),
            endpoints=[each.endpoint for each in desired.endpoints if self._serves(each)],
            memory=agent_pb2.Memory(used_bytes=len(self.models), total_bytes=2**30),
            activity_known=self.activity_known,
            worker_endpoint=_endpoint(self.spec),
            at=_timestamp(self._clock.now()),
        )

    def _serves(self, each: agent_pb2.DesiredEndpoint) -> bool:
        ready = {name for name, model in self.models.items() if model.state == common_pb2.MODEL_STATE_READY}
        return ready.issuperset(each.models)

    def _settle(self) -> None:
        """Takes up what is wanted, and what the knobs say."""
        if self.desired is None:
            return
        wanted = {each.name: each for each in self.desired.models}
        for name in [each for each in self.models if each not in wanted]:
            if self._keeping:
                self.models[name].state = common_pb2.MODEL_STATE_DRAINING
            else:
                del self.models[name]
        for name, each in wanted.items():
            if name not in self.models or self.models[name].wanted.source_digest != each.source_digest:
                self.models[name] = SimulatedModel(each)
            self.models[name].wanted = each
            self._apply_failure(name)
        self._stirred.set()

    def _apply_failure(self, name: str) -> None:
        model = self.models[name]
        if name in self._failing:
            model.state = common_pb2.MODEL_STATE_FAILED
            model.reason, model.message, model.retryable = self._failing[name]
        elif model.state in (common_pb2.MODEL_STATE_FAILED, common_pb2.MODEL_STATE_DRAINING):
            model.state, model.reason, model.message = common_pb2.MODEL_STATE_LOADING, "", ""

    def _advance(self) -> None:
        """What was told as loading is ready at the next report."""
        for name, model in self.models.items():
            if model.state == common_pb2.MODEL_STATE_LOADING and name not in self._held:
                model.state = common_pb2.MODEL_STATE_READY
                self._stirred.set()

    def _reported(self, model: SimulatedModel) -> agent_pb2.ReportedModel:
        wanted = model.wanted
        override = wanted.config_override
        loaded = model.state == common_pb2.MODEL_STATE_READY
        size = sum(file.size_bytes for file in wanted.files)
        return agent_pb2.ReportedModel(
            name=wanted.name,
            source_digest=wanted.source_digest,
            config_digest=hashlib.sha256(override.encode()).hexdigest() if override else "",
            state=model.state,
            reason=model.reason,
            message=model.message,
            retryable=model.retryable,
            fetched_bytes=size,
            total_bytes=size,
            inference_count=model.inference_count,
            last_inference=_timestamp(model.last_inference) if model.last_inference is not None else None,
            in_flight=model.in_flight,
            bytes_before_load=1000 if loaded else 0,
            bytes_after_load=1000 + size if loaded else 0,
            files=[_learnt(file) for file in wanted.files] if loaded else [],
        )


class Sidecars:
    """One simulated sidecar for every worker that the backend runs, for as long as it runs there."""

    def __init__(
        self, backend: fake.FakeBackend, dial: Callable[[], grpc.aio.Channel], clock: clock_module.Clock
    ) -> None:
        self._backend = backend
        self._dial = dial
        self._clock = clock
        self._prepare: list[Callable[[SimulatedSidecar], None]] = []
        self._changed = asyncio.Event()
        self.running: dict[ids.WorkerId, SimulatedSidecar] = {}

    def prepare(self, knob: Callable[[SimulatedSidecar], None]) -> None:
        """Turned on each sidecar that comes, before it connects."""
        self._prepare.append(knob)

    def of(self, group_id: str, place: int = 0) -> SimulatedSidecar:
        """The sidecar of a group that runs; of several replicas, the one at that place."""
        group = ids.GroupId(group_id)
        return self.running[ids.WorkerId(group, self._backend.world.groups[group].replicas[place])]

    async def run(self) -> None:
        """Follows the backend until cancelled."""
        steps = self._backend.watch()
        tasks: dict[ids.WorkerId, asyncio.Task[None]] = {}
        channel = self._dial()
        try:
            while True:
                self._follow(tasks, channel)
                if await anext(steps, "closed") == "closed":
                    return
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            await channel.close()

    def _follow(self, tasks: dict[ids.WorkerId, asyncio.Task[None]], channel: grpc.aio.Channel) -> None:
        groups = self._backend.world.groups
        there = {ids.WorkerId(key, each): group.spec for key, group in groups.items() for each in group.replicas}
        for worker in [each for each in tasks if each not in there]:
            tasks.pop(worker).cancel()
            del self.running[worker]
        for worker, spec in there.items():
            if worker not in tasks:
                sidecar = SimulatedSidecar(channel, spec, self._clock, worker.replica)
                for knob in self._prepare:
                    knob(sidecar)
                self.running[worker] = sidecar
                tasks[worker] = asyncio.create_task(sidecar.run())


async def within(awaited: Awaitable[None], bound_s: float = 30.0) -> None:
    """Waits with a wide bound."""
    async with asyncio.timeout(bound_s):
        await awaited


def _learnt(file: agent_pb2.SourceFile) -> agent_pb2.SourceFile:
    sha256 = hashlib.sha256(f"{file.path} {file.version}".encode()).hexdigest()
    return agent_pb2.SourceFile(path=file.path, size_bytes=file.size_bytes, version=file.version, sha256=sha256)


def _endpoint(spec: backend_module.LaunchSpec) -> common_pb2.Endpoint:
    at = spec.endpoint
    return common_pb2.Endpoint(
        host=at.host, http_port=at.http_port, grpc_port=at.grpc_port, metrics_port=at.metrics_port
    )


def _timestamp(value: dt.datetime) -> timestamp_pb2.Timestamp:
    made = timestamp_pb2.Timestamp()
    made.FromDatetime(value)
    return made
