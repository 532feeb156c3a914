"""The other end of the sidecar's stream, and the sidecar as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import socket
import sys
from collections.abc import AsyncIterator, Callable

import grpc

from protos.tms.v1 import agent_pb2, agent_pb2_grpc, common_pb2
from sidecar import values
from tests.support import v2_servers

PATIENCE_S = 60
TOKEN = "the-token-of-this-group"
READY = common_pb2.MODEL_STATE_READY
Reached = Callable[[agent_pb2.Report], bool]


class ControlPlane(agent_pb2_grpc.AgentsServicer):
    """Says what it is told to say, and keeps what it hears."""

    def __init__(self) -> None:
        self.hellos: list[agent_pb2.Hello] = []
        self.metadata: dict[str, str | bytes] = {}
        self.reports: list[agent_pb2.Report] = []
        self.refusal: grpc.StatusCode | None = None
        self.desired = agent_pb2.Desired(epoch=1)
        self.desired.report_interval.FromMilliseconds(200)
        self._news = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def Connect(  # noqa: N802 - the wire's name
        self,
        requests: AsyncIterator[agent_pb2.AgentMessage],
        context: grpc.aio.ServicerContext[agent_pb2.AgentMessage, agent_pb2.ServerMessage],
    ) -> AsyncIterator[agent_pb2.ServerMessage]:
        self.metadata = dict(context.invocation_metadata() or ())
        if self.refusal:
            await self._tell()
            await context.abort(self.refusal, "refused by the test")
        first = await anext(requests)
        assert first.WhichOneof("message") == "hello"
        self.hellos.append(first.hello)
        hearing = asyncio.ensure_future(self._hear(requests))
        try:
            said = None
            while not hearing.done():
                async with self._news:
                    if self.desired == said:
                        await self._news.wait()
                        continue
                    said = agent_pb2.Desired()
                    said.CopyFrom(self.desired)
                yield agent_pb2.ServerMessage(desired=said)
        finally:
            hearing.cancel()
            await asyncio.wait([hearing])

    async def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """Starts, again on the same port where it was stopped."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        agent_pb2_grpc.add_AgentsServicer_to_server(self, self._server)
        address = f"127.0.0.1:{self.port}"
        if credentials:
            self.port = self._server.add_secure_port(address, credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self) -> None:
        if self._server:
            await self._server.stop(None)
            self._server = None

    async def want(self, models: list[agent_pb2.DesiredModel], servings: list[values.Serving]) -> None:
        """A new generation."""
        self.desired.generation += 1
        del self.desired.models[:]
        del self.desired.endpoints[:]
        self.desired.models.extend(models)
        for serving in servings:
            self.desired.endpoints.add(endpoint=message(serving.endpoint), models=serving.models)
        await self._tell()

    async def route(self) -> None:
        """Clients are led to the sidecar's worker."""
        self.desired.routed = True
        await self._tell()

    async def say(self, desired: agent_pb2.Desired) -> None:
        self.desired = desired
        await self._tell()

    async def heard(self, reached: Reached) -> agent_pb2.Report:
        """The next report from now on of which something is true."""
        begun = len(self.reports)
        return await self.until(lambda: next(filter(reached, self.reports[begun:]), None))

    async def until(self, found: Callable[[], agent_pb2.Report | None]) -> agent_pb2.Report:
        async with asyncio.timeout(PATIENCE_S), self._news:
            while (report := found()) is None:
                await self._news.wait()
            return report

    async def met(self, times: int = 1) -> agent_pb2.Hello:
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: len(self.hellos) >= times and bool(self.reports))
        return self.hellos[-1]

    async def knocked(self) -> None:
        """Somebody came and was refused."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: bool(self.metadata))

    async def _hear(self, requests: AsyncIterator[agent_pb2.AgentMessage]) -> None:
        async for each in requests:
            if each.HasField("report"):
                self.reports.append(each.report)
            await self._tell()
        await self._tell()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


class Sidecar:
    """One tms-sidecar process beside one worker."""

    def __init__(self, folder: pathlib.Path, control: ControlPlane, worker: v2_servers.WorkerProcess) -> None:
        self.folder, self._control, self._worker = folder, control, worker
        self.process: asyncio.subprocess.Process | None = None
        (folder / "token").write_text(f"{TOKEN}\n")

    async def start(self, *flags: str) -> None:
        at = self._worker.endpoint
        arguments = [
            f"--server=localhost:{self._control.port}",
            "--worker-id=group-1",
            f"--token-file={self.folder / 'token'}",
            f"--worker-endpoint={at.host}:{at.http_port}:{at.grpc_port}:{at.metrics_port}",
            f"--model-repository={self._worker.repository}",
            f"--data-dir={self.folder / 'data'}",
            f"--cache-dir={self.folder / 'cache'}",
        ]
        with (self.folder / "sidecar.log").open("ab") as log:
            program = pathlib.Path(sys.executable).parent / "tms-sidecar"
            self.process = await asyncio.create_subprocess_exec(program, *arguments, *flags, stderr=log, env=_plain())

    async def ended(self) -> int:
        assert self.process
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def kill(self) -> None:
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.ended()

    def log(self) -> str:
        return (self.folder / "sidecar.log").read_text()


def message(endpoint: values.Endpoint) -> common_pb2.Endpoint:
    return common_pb2.Endpoint(
        host=endpoint.host,
        http_port=endpoint.http_port,
        grpc_port=endpoint.grpc_port,
        metrics_port=endpoint.metrics_port,
    )


def desired(model: values.Model) -> agent_pb2.DesiredModel:
    """The model as the server names it."""
    made = agent_pb2.DesiredModel(
        name=model.name,
        uri=model.uri,
        source_digest=model.source_digest,
        framework="onnxruntime",
        config_override=model.config_override,
    )
    for file in model.files:
        made.files.add(path=file.path, size_bytes=file.size_bytes, version=file.version, sha256=file.sha256)
    return made


def states(report: agent_pb2.Report) -> dict[str, str]:
    """State by name, without the prefix that all have."""
    return {each.name: common_pb2.ModelState.Name(each.state).removeprefix("MODEL_STATE_") for each in report.models}


def serving(*models: str) -> values.Serving:
    """An endpoint on ports that are free now."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        http_port, grpc_port, metrics_port = (each.getsockname()[1] for each in found)
    return values.Serving(values.Endpoint("127.0.0.1", http_port, grpc_port, metrics_port), models)


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TMS_")}
