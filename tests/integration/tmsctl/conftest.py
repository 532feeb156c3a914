"""tmsctl as a user runs it: a process of its own with files of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tests.support import server as server_support

PATIENCE_S = 60.0


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Tmsctl:
    """Runs commands against one target."""

    def __init__(self, home: pathlib.Path, target: str) -> None:
        self._started: list[asyncio.subprocess.Process] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TMS_")}
        self.environment = {**clean, "XDG_CONFIG_HOME": str(home)} | ({"TMS_TARGET": target} if target else {})

    async def start(self, *arguments: str, before: Sequence[str] = (), **options: Any) -> asyncio.subprocess.Process:
        """A command that goes on; stdout and stderr are pipes, stdin is empty. `before` is a program that becomes it."""
        pipes = {
            "stdin": asyncio.subprocess.DEVNULL,
            "stdout": asyncio.subprocess.PIPE,
            "stderr": asyncio.subprocess.PIPE,
        }
        command = [*before, sys.executable, "-m", "tmsctl", *arguments]
        process = await asyncio.create_subprocess_exec(*command, env=self.environment, **{**pipes, **options})
        self._started.append(process)
        return process

    async def stop(self) -> None:
        """Ends what a failed test has left."""
        for process in self._started:
            if process.returncode is None:
                process.terminate()
                await finish(process)

    async def __call__(self, *arguments: str) -> Done:
        process = await self.start(*arguments)
        return await finish(process)


async def finish(process: asyncio.subprocess.Process) -> Done:
    """Waits for a command's end; it is killed when it takes too long."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "home"


@pytest.fixture
async def server(tmp_path: pathlib.Path) -> AsyncIterator[server_support.Running]:
    async with server_support.running(tmp_path / "server") as running:
        yield running


@pytest.fixture
async def tmsctl(home: pathlib.Path, server: server_support.Running) -> AsyncIterator[Tmsctl]:
    commands = Tmsctl(home, server.address)
    yield commands
    await commands.stop()


@pytest.fixture
async def stray(home: pathlib.Path) -> AsyncIterator[Tmsctl]:
    """Knows no server."""
    commands = Tmsctl(home, "")
    yield commands
    await commands.stop()


@pytest.fixture
async def full_pool(tmsctl: Tmsctl) -> str:
    """A pool of one worker that another lease has for itself."""
    worker = ("--command", "tms-worker", "--memory", "1MiB", "--max-workers", "1")
    assert (await tmsctl("pool", "create", "full", *worker)).code == 0
    model = "first=model://shelf/first,bytes=1MiB"
    made = await tmsctl("lease", "create", "--pool", "full", "--model", model, "--exclusive", "--wait")
    assert made.code == 0, made.err
    return "full"
