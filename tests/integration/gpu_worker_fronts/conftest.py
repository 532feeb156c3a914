"""A real engine with small models behind real listeners on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httptools
import pytest

from gpu_worker import core, listener
from gpu_worker.grpc import grpcio, listen
from gpu_worker.grpc.native import server as native
from gpu_worker.http import api
from gpu_worker.http import limits as http_limits
from gpu_worker.http import server as http_server
from gpu_worker.wire import intake as wire_intake
from gpu_worker.wire import rules as wire_rules
from tests.support import onnx_models

WIDE_S = 60.0
_ONE_SLOW = """
max_batch_size: 0
input [{name: "INPUT" data_type: TYPE_FP32 dims: [-1, 4]}]
output [{name: "OUTPUT" data_type: TYPE_FP32 dims: [-1, 4]}]
instance_group [{count: 1 kind: KIND_CPU}]
"""


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> object:
        return json.loads(self.body)


class Client:
    """A raw HTTP connection: sends what it is told, reads whole answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._answers: list[Answer] = []
        self._headers: dict[str, str] = {}
        self._body = b""
        self._parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._answers.append(Answer(self._parser.get_status_code(), self._headers, self._body))
        self._headers, self._body = {}, b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answers(self, count: int) -> list[Answer]:
        """The next answers; fewer only when the server ends the connection."""
        async with asyncio.timeout(WIDE_S):
            while len(self._answers) < count and (data := await self.reader.read(2**16)):
                self._parser.feed_data(data)
        taken, self._answers = self._answers[:count], self._answers[count:]
        return taken

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        (answer,) = await self.answers(1)
        return answer

    async def ended(self) -> bool:
        """Waits for the server to end the connection; true if nothing more came."""
        async with asyncio.timeout(WIDE_S):
            return await self.reader.read() == b""


@dataclasses.dataclass
class Front:
    """An HTTP and a gRPC front of one engine."""

    engine: core.Core
    intake: wire_intake.Intake
    http: http_server.Server
    http_port: int
    grpc: Any
    grpc_port: int
    _clients: list[Client] = dataclasses.field(default_factory=list)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.http_port))
        self._clients.append(client)
        return client

    async def disconnect(self) -> None:
        for client in self._clients:
            client.writer.close()
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()


Serve = Callable[..., Awaitable[Front]]


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    """ident (FP32 [batch,4]), text (BYTES), addsub, and slow: one instance, no batching."""
    models = tmp_path / "models"
    onnx_models.put(models, "ident", onnx_models.identity())
    onnx_models.put(models, "text", onnx_models.identity("BYTES"))
    onnx_models.put(models, "addsub", onnx_models.add_sub())
    onnx_models.put(models, "slow", onnx_models.slow(), config=_ONE_SLOW)
    return models


FRONTENDS = {"native": native.Server, "grpcio": grpcio.Server}


@pytest.fixture
def frontend() -> str:
    """Which gRPC front is served; test modules about gRPC ask for both."""
    return "native"


@pytest.fixture
async def serve(repository: pathlib.Path, frontend: str) -> AsyncIterator[Serve]:
    """Starts fronts, with limits, rules and an engine where given; ends them after the test."""
    stack = contextlib.AsyncExitStack()

    async def start(
        limits: http_limits.Limits | None = None,
        bounds: wire_intake.Bounds | None = None,
        rules: wire_rules.Rules = wire_rules.OPEN,
        engine: Any = None,
    ) -> Front:
        engine = engine or await _engine(repository, stack)
        intake = wire_intake.Intake(engine, bounds)
        application = api.Api(engine, intake, (limits or http_limits.Limits()).body_bytes, rules)
        stack.callback(application.close)
        stack.push_async_callback(application.stop)
        http = http_server.Server(application, intake, limits)
        stack.push_async_callback(http.close)
        calls = FRONTENDS[frontend](engine, intake, listen.Listen("127.0.0.1", 0), rules)
        stack.push_async_callback(calls.stop, 0)
        http_port = await http.start(listener.Listen("127.0.0.1", 0))
        front = Front(engine, intake, http, http_port, calls, await calls.start())
        stack.push_async_callback(front.disconnect)
        return front

    async with stack:
        yield start


async def _engine(repository: pathlib.Path, stack: contextlib.AsyncExitStack) -> core.Core:
    options = core.Options(
        repositories=(repository,), control=core.ControlMode.EXPLICIT, load_at_start=("ident", "text", "slow")
    )
    engine = core.Core.create(options)
    await engine.start()
    stack.push_async_callback(engine.close)
    return engine


@dataclasses.dataclass
class Worker:
    """A worker process that is ready; `log` is what it wrote so far."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    log_file: pathlib.Path
    ready_file: pathlib.Path

    def says_ready(self) -> bool:
        return self.ready_file.exists()

    def log(self) -> str:
        return self.log_file.read_text()

    def wait(self) -> int:
        return self.process.wait(WIDE_S)


Launch = Callable[..., Awaitable[Worker]]


@pytest.fixture
def frontends() -> int:
    """How many front processes a worker has; tests that hold for several ask for them as a parameter."""
    return 1


@pytest.fixture
def launch(repository: pathlib.Path, tmp_path: pathlib.Path, frontend: str, frontends: int) -> Iterator[Launch]:
    """Starts `python -m gpu_worker` and waits until its ready file is there."""
    started: list[subprocess.Popen[bytes]] = []

    async def start(*arguments: str) -> Worker:
        ready = tmp_path / f"ready{len(started)}"
        log_file = tmp_path / f"log{len(started)}"
        command = [sys.executable, "-m", "gpu_worker", f"--model-repository={repository}", f"--ready-file={ready}"]
        command += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", f"--grpc-frontend={frontend}"]
        command += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--frontends={frontends}"]
        command += arguments
        process = _start(command, log_file)
        started.append(process)
        async with asyncio.timeout(WIDE_S):
            while not ready.exists():
                assert process.poll() is None, log_file.read_text()
                await _tick()
        return Worker(process, json.loads(ready.read_text()), log_file, ready)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(WIDE_S)


def _start(command: list[str], log_file: pathlib.Path) -> subprocess.Popen[bytes]:
    with log_file.open("wb") as log:
        return subprocess.Popen(command, stderr=log, stdout=log)


async def _tick() -> None:
    """Looks again in a moment: a file's appearance is no event that portable code could wait for."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.02):
            await asyncio.Event().wait()
