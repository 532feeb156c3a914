"""`tmsctl run` with real processes and real signals: whatever happens, the lease is released and the code is the command's."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import pty
import signal
import sys
from typing import Any

import pytest

from protos.tms.v1 import lease_pb2
from tests.support import server as support
from tmsctl import errors

MODEL = ("--model", "a=model://shelf/a")
TELLS_SIGNALS = """
import signal, sys
came = []
def note(number, frame):
    came.append(number)
    print(signal.Signals(number).name, flush=True)
def leave(number, frame):
    print("came", [signal.Signals(each).name for each in came], flush=True)
    sys.exit(5)
for each in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(each, note)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
while True:
    signal.pause()
"""
# The command calls tmsctl itself, which goes to the same server.
TELLS_LEASE = """
import json, os, subprocess, sys
get = [sys.executable, "-m", "tmsctl", "lease", "get", os.environ["TMS_LEASE_ID"], "-o", "json"]
lease = json.loads(subprocess.run(get, capture_output=True, check=True).stdout)
print(json.dumps([dict(os.environ), lease]))
sys.exit(7)
"""
# Makes standard input the terminal of a session of its own, as a shell's terminal is.
OWN_TERMINAL = (
    sys.executable,
    "-c",
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])",
)
PENDING_FOR_EVER = ("--model", "a=model://shelf/a,bytes=1MiB", "--pool", "full")


def script(text: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", text)


async def the_only_lease(tmsctl: Any) -> Any:
    (lease,) = (await tmsctl("lease", "list", "--all", "-o", "json")).json()["leases"]
    return lease


async def assert_released(tmsctl: Any) -> None:
    lease = await the_only_lease(tmsctl)
    assert lease["end"]["reason"] == "Released"


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return (await process.stdout.readline()).decode().strip()


async def test_the_command_finds_the_lease_and_its_code_comes_back(tmsctl: Any) -> None:
    done = await tmsctl("run", *MODEL, *script(TELLS_LEASE))
    assert done.code == 7
    seen, lease = json.loads(done.out)
    endpoint = lease["endpoint"]
    assert lease["state"] == "LEASE_STATE_ACTIVE"
    assert seen["TMS_LEASE_ID"] == lease["id"]
    assert seen["TMS_HTTP_URL"] == f"http://{endpoint['host']}:{endpoint['http_port']}"
    assert seen["TMS_GRPC_URL"] == f"{endpoint['host']}:{endpoint['grpc_port']}"
    assert seen["TMS_METRICS_URL"] == f"http://{endpoint['host']}:{endpoint['metrics_port']}/metrics"
    assert lease["times"]["renewal"] == "RENEWAL_KEEPALIVE"
    await assert_released(tmsctl)


async def test_a_command_that_a_signal_ends_gives_128_and_its_number(tmsctl: Any) -> None:
    done = await tmsctl("run", "-q", *MODEL, *script("import os; os.kill(os.getpid(), 9)"))
    assert (done.code, done.err) == (128 + 9, "")
    await assert_released(tmsctl)


async def test_signals_reach_the_command(tmsctl: Any) -> None:
    process = await tmsctl.start("run", "-q", *MODEL, *script(TELLS_SIGNALS))
    assert await line(process) == "ready"
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
        process.send_signal(number)
        assert await line(process) == number.name
    process.terminate()
    assert await line(process) == "came ['SIGHUP', 'SIGUSR1', 'SIGINT']"
    assert await process.wait() == 5
    await assert_released(tmsctl)


async def test_the_command_gets_a_ctrl_c_of_the_terminal_once(tmsctl: Any) -> None:
    ours, theirs = pty.openpty()
    process = await tmsctl.start("run", "-q", *MODEL, *script(TELLS_SIGNALS), before=OWN_TERMINAL, stdin=theirs)
    try:
        assert await line(process) == "ready"
        os.write(ours, b"\x03")
        assert await line(process) == "SIGINT"
        process.terminate()
        assert await line(process) == "came ['SIGINT']"
        assert await process.wait() == 5
    finally:
        os.close(ours)
        os.close(theirs)
    await assert_released(tmsctl)


async def test_a_signal_while_waiting_for_the_lease_gives_it_up(tmsctl: Any, full_pool: str) -> None:
    process = await tmsctl.start("run", *PENDING_FOR_EVER, "--", "true")
    async with asyncio.timeout(60):
        pending = (await process.stderr.readline()).decode().split()[0]
        process.terminate()
        assert await process.wait() == 128 + signal.SIGTERM
    assert (await tmsctl("lease", "get", pending, "-o", "json")).json()["end"]["reason"] == "Released"


async def test_a_lease_that_does_not_come_is_given_up(tmsctl: Any, full_pool: str) -> None:
    done = await tmsctl("run", *PENDING_FOR_EVER, "--wait-timeout", "1s", "--", "true")
    assert done.code == running_code(errors.Exit.NO_CAPACITY)
    pending = done.err.split()[0]
    assert (await tmsctl("lease", "get", pending, "-o", "json")).json()["end"]["reason"] == "Released"


async def test_a_lease_that_is_refused_gives_its_code(tmsctl: Any) -> None:
    done = await tmsctl("run", "--model", "a=model://nowhere/a", "--", "true")
    assert done.code == running_code(errors.Exit.NOT_FOUND)
    assert (await tmsctl("lease", "list", "--all", "-o", "name")).out == ""


async def test_a_lease_that_is_lost_ends_the_command(tmsctl: Any) -> None:
    process = await tmsctl.start("run", "-q", *MODEL, *script(TELLS_SIGNALS))
    assert await line(process) == "ready"
    lease = await the_only_lease(tmsctl)
    await tmsctl("lease", "release", lease["id"])
    assert await line(process) == "came []"
    async with asyncio.timeout(60):
        assert await process.wait() == running_code(errors.Exit.PRECONDITION)


async def test_the_lease_outlives_its_hold_while_the_command_runs(tmsctl: Any, server: support.Running) -> None:
    process = await tmsctl.start("run", "-q", *MODEL, "--hold", "1s", *script(TELLS_SIGNALS))
    assert await line(process) == "ready"
    lease_id = (await the_only_lease(tmsctl))["id"]
    for _ in range(4):
        server.advance(seconds=0.8)
        await renewed_since(server, lease_id, server.clock.now())
    process.terminate()
    assert await process.wait() == 5
    await assert_released(tmsctl)


@pytest.mark.parametrize(("program", "code"), [("nowhere-at-all", 127), ("/etc/passwd", 126)])
async def test_a_command_that_cannot_run_leases_nothing(tmsctl: Any, program: str, code: int) -> None:
    done = await tmsctl("run", *MODEL, "--", program)
    assert done.code == code
    assert "nothing was leased" in done.err
    assert (await tmsctl("lease", "list", "--all", "-o", "name")).out == ""


async def renewed_since(server: support.Running, lease_id: str, instant: dt.datetime) -> None:
    """Asks again and again, as a renewal is no change that a watch tells of."""
    async with asyncio.timeout(60):
        lease = await server.get(lease_id)
        while lease.expires.at.ToDatetime(tzinfo=dt.UTC) < instant + dt.timedelta(seconds=1):
            assert lease.state == lease_pb2.LEASE_STATE_ACTIVE
            lease = await server.get(lease_id)


def running_code(code: errors.Exit) -> int:
    return errors.RUN_OFFSET + code
