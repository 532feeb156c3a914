"""Keeps programs running: starts them, waits until they are ready, revives those that end, stops them all.

Everything that it starts dies with this process, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import os
import pathlib
import signal
import ssl

import aiohttp

from tests.kubernetes.cluster import layout as layouts
from tests.kubernetes.cluster import programs

_PROBE_INTERVAL_S = 0.05
_PROBE_LIMIT_S = 2.0
_REVIVE_AFTER_S = 1.0
_TAIL_BYTES = 4_000
_PR_SET_CHILD_SUBREAPER = 36

# The kernel kills the program when its parent is gone.
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


class StartError(Exception):
    """A program did not become ready; the message carries the end of its log."""


@dataclasses.dataclass
class _Running:
    """A program that shall run: its process, and the task that revives it."""

    program: programs.Program
    process: asyncio.subprocess.Process
    guard: asyncio.Task[None]


class Supervisor:
    """The programs of one cluster, by name."""

    def __init__(self, layout: layouts.Layout, start_limit_s: float) -> None:
        self._layout = layout
        self._start_limit_s = start_limit_s
        self._known: dict[str, programs.Program] = {}
        self._running: dict[str, _Running] = {}
        self._session: aiohttp.ClientSession | None = None

    async def start_new(self, program: programs.Program) -> None:
        """Starts `program` for the first time, and remembers it for `start` and `stop`."""
        self._known[program.name] = program
        await self.start(program.name)

    async def start(self, name: str) -> None:
        """Starts a program that does not run and waits until it is ready.

        Raises:
            KeyError: no program of that name.
            StartError: it ended, or was not ready in time.
        """
        program = self._known[name]
        if name not in self._running:
            process = await self._launch(program)
            guard = asyncio.create_task(self._keep_running(program), name=f"guard of {name}")
            self._running[name] = _Running(program, process, guard)
        await self._until_ready(self._running[name])

    async def stop(self, name: str) -> None:
        """Ends a program and everything that it answers for; nothing happens where it does not run.

        Raises:
            KeyError: no program of that name.
        """
        program = self._known[name]
        if running := self._running.pop(name, None):
            running.guard.cancel()
            await _end(running.process, program.stop_limit_s)

    async def close(self) -> None:
        """Ends all programs: those first that were started last."""
        for name in reversed(list(self._running)):
            await self.stop(name)
        if self._session:
            await self._session.close()

    async def _launch(self, program: programs.Program) -> asyncio.subprocess.Process:
        with self._layout.log(program.name).open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *DIE_WITH_PARENT,
                *program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt from the terminal is the command's, not theirs
            )

    async def _keep_running(self, program: programs.Program) -> None:
        """Does what the kubelet of a real control plane does for its static pods."""
        while running := self._running.get(program.name):
            status = await running.process.wait()
            layouts.say(f"{program.name} ended with {status}; starting it again in {_REVIVE_AFTER_S:.0f} s")
            await asyncio.sleep(_REVIVE_AFTER_S)  # noqa: TID251 - a program that ends at once must not spin
            running.process = await self._launch(program)

    async def _until_ready(self, running: _Running) -> None:
        program, process = running.program, running.process
        ended = asyncio.create_task(process.wait())
        try:
            async with asyncio.timeout(self._start_limit_s):
                while not await self._is_ready(program):
                    await asyncio.wait({ended}, timeout=_PROBE_INTERVAL_S)
                    if ended.done():
                        raise StartError(f"{program.name} ended with {ended.result()}:\n{self._tail(program.name)}")
        except TimeoutError:
            raise StartError(
                f"{program.name} was not ready within {self._start_limit_s:.0f} s:\n{self._tail(program.name)}"
            ) from None
        finally:
            ended.cancel()

    async def _is_ready(self, program: programs.Program) -> bool:
        try:
            return await program.ready(self._http())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def _http(self) -> aiohttp.ClientSession:
        """The administrator's session, without connections kept: a probe shall see what a new client sees."""
        if self._session is None:
            context = ssl.create_default_context(cafile=str(self._layout.certificate("ca")))
            context.load_cert_chain(self._layout.certificate("admin"), self._layout.key("admin"))
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, force_close=True),
                timeout=aiohttp.ClientTimeout(total=_PROBE_LIMIT_S),
            )
        return self._session

    def _tail(self, name: str) -> str:
        content = self._layout.log(name).read_bytes()[-_TAIL_BYTES:]
        return content.decode(errors="replace")


def adopt_orphans() -> None:
    """Makes this process the parent of every process below it whose own parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def kill_descendants() -> None:
    """Kills, by its id, every process below this one, and waits until none is left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def descendants(ancestor: int) -> list[int]:
    """The ids of all processes below one, nearest first."""
    parents = dict(_processes())
    found: list[int] = []
    level = {ancestor}
    while level := {pid for pid, parent in parents.items() if parent in level}:
        found += level
    return found


def _processes() -> list[tuple[int, int]]:
    """Every process that can be seen, as (id, its parent's id)."""
    processes = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                after_name = (entry / "stat").read_text().rpartition(")")[2]
                processes.append((int(entry.name), int(after_name.split()[1])))
    return processes


async def _end(process: asyncio.subprocess.Process, limit_s: float) -> None:
    if process.returncode is None and limit_s:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), limit_s)
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
