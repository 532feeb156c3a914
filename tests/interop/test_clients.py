"""Clients of four gRPC libraries, unmodified and in processes of their own, ask a worker for everything."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from tests.interop import programs
from tests.support.way import Way

from .conftest import Start

# A program may have to be built, on a machine that has nothing yet.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CLIENTS = ("go", "node", "python", "python-aio")
PATIENCE_S = 110.0
PLAIN = ("unary", "stream", "metadata", "deadline", "cancel", "large", "parallel", "error", "health")
FLAGS = {
    "gzip": ("--grpc-infer-response-compression-level=high",),
    "keepalive": (
        "--grpc-keepalive-permit-without-calls=true",
        "--grpc-http2-min-recv-ping-interval-without-data=1",
        "--grpc-http2-max-ping-strikes=0",
    ),
}
"""What a scenario needs of the worker."""

Command = Callable[[str, str], list[str | pathlib.Path]]


@pytest.fixture(scope="module", params=CLIENTS)
def client(request: pytest.FixtureRequest, descriptors: pathlib.Path) -> Command:
    """Gives the command that runs a scenario against an address."""
    if request.param == "go":
        program = programs.go(programs.CLIENT)
        return lambda scenario, address: [program, scenario, address, descriptors]
    if request.param == "node":
        node = programs.node()
        return lambda scenario, address: [*node, scenario, address, programs.REPOSITORY]
    kind = "aio" if request.param == "python-aio" else "sync"
    script = programs.HERE / "python_client.py"
    return lambda scenario, address: [sys.executable, script, kind, scenario, address]


@contextlib.asynccontextmanager
async def running(command: list[str | pathlib.Path]) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=programs.REPOSITORY, env=programs.environment()
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def succeed(process: asyncio.subprocess.Process, log: str = "") -> None:
    """Closes its standard input and waits until it ends well."""
    async with asyncio.timeout(PATIENCE_S):
        said, complained = await process.communicate(b"")
    assert process.returncode == 0, (said + complained).decode() + log


@pytest.mark.parametrize("scenario", [*PLAIN, *FLAGS])
async def test_the_client_is_served(client: Command, worker: Start, scenario: str) -> None:
    found = worker(*FLAGS.get(scenario, ()))
    async with running(client(scenario, found.address("grpc"))) as process:
        await succeed(process, found.log())


async def test_no_call_fails_while_connections_age(client: Command, worker: Start) -> None:
    found = worker("--grpc-max-connection-age=100")
    async with Way().open() as way:
        way.target = found.ports["grpc"]
        async with running(client("load", f"127.0.0.1:{way.port}")) as process:
            await until(way.has_taken(8), process)
            await succeed(process, found.log())


async def test_no_call_fails_while_a_worker_ends(client: Command, start: Start) -> None:
    """The client is led to another one when it is told to go."""
    old, new = (start("--grpc-max-connection-age=300") for _ in range(2))
    async with Way().open() as way:
        way.target = old.ports["grpc"]
        async with running(client("load", f"127.0.0.1:{way.port}")) as process:
            await until(way.has_taken(1), process)
            way.target = new.ports["grpc"]
            before = way.taken
            old.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(old.wait) == 0
            await until(way.has_taken(before + 1), process)
            await succeed(process, old.log())
    assert '"drained": true' in old.log()


async def until(event: Coroutine[Any, Any, None], process: asyncio.subprocess.Process) -> None:
    """Waits for `event`; fails at once when the client ends before it."""
    awaited = asyncio.ensure_future(event)
    ended = asyncio.ensure_future(process.wait())
    await asyncio.wait({awaited, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not awaited.done():
        awaited.cancel()
        await succeed(process)
        raise AssertionError("the client ended too early")
    ended.cancel()
    awaited.result()
