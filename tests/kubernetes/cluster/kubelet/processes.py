"""Containers' processes as the kubelet holds them: started in a sandbox, signalled, frozen, waited for.

None outlives the kubelet: a sandbox dies with it, and everything in a sandbox dies with its first process.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys
import tempfile

from tests.kubernetes.cluster import layout

_SANDBOX = pathlib.Path(__file__).with_name("sandbox.py")
_START_LIMIT_S = 30.0
_OUTPUT_BYTES = 4_096
# What an image brings: the interpreter, its packages and the programs.
_IMAGE_PATHS = sorted({str(layout.REPOSITORY), sys.prefix, sys.base_prefix})
_SCRIPTS = pathlib.Path(sys.executable).parent
# What an image sets: nothing of the developer's own environment leaks in.
IMAGE_ENVIRONMENT = {
    "PATH": f"{_SCRIPTS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class StartError(Exception):
    """A container's command could not be run."""


@dataclasses.dataclass(frozen=True)
class Mount:
    """A path of the machine at a place of the container."""

    source: str
    target: str
    read_only: bool = False


@dataclasses.dataclass(frozen=True)
class Order:
    """What to run, and in what surroundings. `folder` is this run's own; its log is `folder`/log."""

    command: list[str]
    environment: dict[str, str]
    hostname: str
    folder: pathlib.Path
    mounts: list[Mount]
    working_directory: str = ""
    read_only_root: bool = False

    @property
    def log(self) -> pathlib.Path:
        return self.folder / "log"


class Process:
    """A running container. `pid` is its first process, as this machine counts."""

    def __init__(self, order: Order, launcher: asyncio.subprocess.Process, pid: int) -> None:
        self.order = order
        self.pid = pid
        self._launcher = launcher
        self._handle = _handle(pid)
        self._ended = asyncio.create_task(self._wait())

    async def wait(self) -> int:
        """The exit status, 128 + n for one that signal n ended."""
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Signals the first process; nothing happens where it has ended."""
        if self._handle is not None and not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def freeze(self) -> None:
        """Stops all processes of the container."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    async def run_beside(self, command: list[str], limit_s: float) -> tuple[int, str]:
        """Runs a command in the container and gives its exit status and the beginning of its output.

        Raises:
            TimeoutError: it did not end in time; it is killed.
        """
        order = {"pid": self.pid, "command": command, "environment": self.order.environment}
        with tempfile.NamedTemporaryFile("w", dir=self.order.folder, suffix=".json") as file:
            json.dump(order, file)
            file.flush()
            runner = await _launch("enter", file.name, stderr=asyncio.subprocess.STDOUT)
            try:
                async with asyncio.timeout(limit_s):
                    output, _ = await runner.communicate()
            finally:
                if runner.returncode is None:
                    runner.kill()
                    await runner.wait()
        _, _, said = output.decode(errors="replace").partition("\n")
        return runner.returncode or 0, said[:_OUTPUT_BYTES]

    def _signal_all(self, number: int) -> None:
        if self._handle is None or self._ended.done():
            return
        self.signal(number)
        with contextlib.suppress(OSError):
            namespace = str(pathlib.Path(f"/proc/{self.pid}/ns/pid").readlink())
            for pid in _members(namespace):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    async def _wait(self) -> int:
        status = await self._launcher.wait()
        if self._handle is not None:
            os.close(self._handle)
        return 128 - status if status < 0 else status


async def start(order: Order) -> Process:
    """Starts a container's command.

    Raises:
        StartError: its root cannot be laid out, or there is no such command.
    """
    root = order.folder / "root"
    root.mkdir(parents=True)
    file = order.folder / "order.json"
    file.touch(mode=0o600)
    mounts = [dataclasses.asdict(mount) for mount in order.mounts]
    file.write_text(
        json.dumps(
            {
                "command": order.command,
                "environment": order.environment,
                "hostname": order.hostname,
                "working_directory": order.working_directory,
                "read_only_root": order.read_only_root,
                "mounts": sorted(mounts, key=lambda mount: str(mount["target"])),
                "keep": _IMAGE_PATHS,
                "root": str(root),
                "log": str(order.log),
            }
        )
    )
    launcher = await _launch("start", str(file))
    try:
        return Process(order, launcher, await _started(launcher))
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            launcher.kill()
        await launcher.wait()
        raise


async def _launch(action: str, file: str, stderr: int | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_SANDBOX), action, file),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )


async def _started(launcher: asyncio.subprocess.Process) -> int:
    assert launcher.stdout
    try:
        async with asyncio.timeout(_START_LIMIT_S):
            line = (await launcher.stdout.readline()).decode(errors="replace")
    except TimeoutError:
        raise StartError(f"it did not start within {_START_LIMIT_S:.0f} s") from None
    said, _, rest = line.strip().partition(" ")
    if said != "started":
        raise StartError(rest or "the sandbox ended without a word")
    return int(rest)


def _handle(pid: int) -> int | None:
    """A process by a handle that can mean no other one; None where it has ended already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _members(namespace: str) -> collections.abc.Iterator[int]:
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str((entry / "ns" / "pid").readlink()) == namespace:
                    yield int(entry.name)
