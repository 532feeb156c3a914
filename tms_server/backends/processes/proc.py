"""Processes that outlive the server: started in sessions of their own, known again by pid, start time and boot.

A pid alone never identifies: every signal goes through a pidfd that was opened before the start time was compared, so a
reused number is never mistaken. Whatever a process leaves behind in its session carries a mark in its environment, by
which `sweep` finds it; so two workers of one group never run at once, even if the server died between a start and its note.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence

MARK = "TMS_SUPERVISED_AS"
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Names one process of this host for ever."""

    pid: int
    start_ticks: int
    boot_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How to start a process; its output is appended to the log."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    mark: str
    directory: pathlib.Path
    log: pathlib.Path


class Process:
    """A process, ours by birth or adopted. Made in any thread, awaited on the loop."""

    def __init__(self, identity: Identity, pidfd: int) -> None:
        self.identity = identity
        self._pidfd = pidfd
        self._exit: asyncio.Future[str] | None = None

    def alive(self) -> bool:
        """Whether it has not ended; a zombie has."""
        return not _wait_readable(self._pidfd, 0)

    def send(self, number: signal.Signals) -> None:
        """Signals it, if it still is."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> str:
        """Returns when it has ended, and how, in words."""
        if self._exit is None:
            loop = asyncio.get_running_loop()
            self._exit = loop.create_future()
            loop.add_reader(self._pidfd, self._ended)
        return await asyncio.shield(self._exit)

    def forget(self) -> None:
        """Lets go of it without stopping it."""
        if self._exit is not None and not self._exit.done():
            self._exit.get_loop().remove_reader(self._pidfd)
            self._exit.cancel()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1

    def _ended(self) -> None:
        assert self._exit is not None
        self._exit.get_loop().remove_reader(self._pidfd)
        self._exit.set_result(_reap(self._pidfd))


def start(wanted: Start) -> Process:
    """Starts a process in a session of its own; OSError when it cannot be."""
    with wanted.log.open("ab") as log:
        os.fchmod(log.fileno(), 0o600)
        # Not waited for: deaths are told by the pidfd, also of processes that an earlier server started.
        child = subprocess.Popen(
            list(wanted.argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=wanted.directory,
            env={**wanted.environment, MARK: wanted.mark},
            start_new_session=True,
        )
    # Popen must neither reap it nor complain when it is dropped: the child lives on by design.
    child.returncode = 0
    # Until it is reaped, which only `wait` does, the number cannot be anybody else's.
    return Process(Identity(child.pid, _start_ticks(child.pid), boot_id()), os.pidfd_open(child.pid))


def find(identity: Identity) -> Process | None:
    """The process with that identity if it still lives."""
    if identity.boot_id != boot_id():
        return None
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    process = Process(identity, pidfd)
    if _start_ticks(identity.pid) == identity.start_ticks and process.alive():
        return process
    process.forget()
    return None


def sweep(mark: str) -> int:
    """Kills every process that carries the mark and waits for its end; answers how many."""
    strays = list(_marked(mark))
    for _pid, pidfd in strays:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for _pid, pidfd in strays:
        # A kill that takes longer is stuck in the kernel; the next start sweeps again.
        _wait_readable(pidfd, 5000)
        _reap(pidfd)
        os.close(pidfd)
    return len(strays)


def boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _marked(mark: str) -> Iterator[tuple[int, int]]:
    line = f"{MARK}={mark}".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            pidfd = os.pidfd_open(int(entry.name))
        except OSError:
            continue
        if line in _environment(entry.name):
            yield int(entry.name), pidfd
        else:
            os.close(pidfd)


def _environment(pid: str) -> list[bytes]:
    try:
        return pathlib.Path("/proc", pid, "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _start_ticks(pid: int) -> int:
    """Field 22 of the stat line, -1 without such a process; the name before it may hold anything but its last bracket."""
    try:
        stat = pathlib.Path("/proc", str(pid), "stat").read_text(errors="replace")
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[19])


def _reap(pidfd: int) -> str:
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        # Adopted: init learnt its status.
        return "ended"
    if result is None:
        return "ended"
    if result.si_code == os.CLD_EXITED:
        return f"exit status {result.si_status}"
    return f"killed by signal {result.si_status}"


def _wait_readable(pidfd: int, timeout_ms: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_ms))
