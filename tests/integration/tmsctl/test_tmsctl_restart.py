"""What the command line does while the real server goes and another one takes its place."""

from __future__ import annotations

import asyncio
import json
import pathlib
import socket
from typing import Any

import pytest

from protos.tms.v1 import lease_pb2
from tests.support import server as support


@pytest.fixture
def port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> support.Machine:
    return support.Machine(tmp_path / "server")


async def test_a_watch_goes_on_where_it_was(stray: Any, machine: support.Machine, port: int) -> None:
    async with support.running(machine, api={"port": port}) as first:
        stray.environment["TMS_TARGET"] = first.address
        lease = await first.active()
        process = await stray.start("lease", "watch", lease.id, "-o", "json", "--timeout", "50s")
        seen = [json.loads(await process.stdout.readline())]
    async with support.running(machine, api={"port": port}) as second, asyncio.timeout(60):
        await second.release(lease.id)
        seen += [json.loads(line) async for line in process.stdout]
        assert await process.wait() == 0
    revisions = [int(update["revision"]) for update in seen]
    assert revisions == sorted(revisions)
    assert seen[-1]["lease"]["state"] == "LEASE_STATE_RELEASED"


async def test_run_goes_on_and_still_releases(stray: Any, machine: support.Machine, port: int) -> None:
    async with support.running(machine, api={"port": port}) as first:
        stray.environment["TMS_TARGET"] = first.address
        model = ("--model", "a=model://shelf/a")
        process = await stray.start(
            "run",
            "-q",
            "--timeout",
            "50s",
            *model,
            "--",
            "sh",
            "-c",
            "echo $TMS_LEASE_ID; read x",
            stdin=asyncio.subprocess.PIPE,
        )
        lease_id = (await process.stdout.readline()).decode().strip()
    async with support.running(machine, api={"port": port}) as second, asyncio.timeout(60):
        held = await second.get(lease_id)
        assert held.state == lease_pb2.LEASE_STATE_ACTIVE
        process.stdin.write(b"go\n")
        assert await process.wait() == 0
        ended = await second.until(lease_id, lambda lease: lease.HasField("end"))
        assert ended.end.reason == "Released"
