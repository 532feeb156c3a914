"""tmsctl as a user runs it: a process of its own with files of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import pytest

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
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TMS_")}
        self.environment = {**clean, "XDG_CONFIG_HOME": str(home)} | ({"TMS_TARGET": target} if target else {})

    async def start(self, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        """A command that goes on; stdout and stderr are pipes, stdin is empty."""
        pipes = {
            "stdin": asyncio.subprocess.DEVNULL,
            "stdout": asyncio.subprocess.PIPE,
            "stderr": asyncio.subprocess.PIPE,
        }
        command = [sys.executable, "-m", "tmsctl", *arguments]
        return await asyncio.create_subprocess_exec(*command, env=self.environment, **{**pipes, **options})

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
def tmsctl_type() -> type[Tmsctl]:
    return Tmsctl
