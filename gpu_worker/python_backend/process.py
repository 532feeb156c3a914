"""One process of a Python model, as the worker sees it: started, spoken with, ended.

Decides what crosses the border of the process and what of it reaches the log. Belongs to the event loop but for `send`.
Must never wait for the process on the loop, nor keep memory or descriptors of one that has ended.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from gpu_worker.ipc import link, memory, pump
from gpu_worker.python_backend import wire

log = structlog.get_logger(__name__)

_PROGRAM = "gpu_worker.python_backend.child"
_FOLDER = str(pathlib.Path(__file__).parents[2])
_RETRY_S = 0.001
_CHUNK_BYTES = 2**16
_LONGEST_LINE = 2**14
_LEVELS = {"verbose": "debug", "warning": "warning", "error": "error"}


class Process:
    """`heard` gets its messages, `ended` is called once with words that say how it ended."""

    def __init__(self, name: str, heard: Callable[[link.Message], None], ended: Callable[[str], None]) -> None:
        self._name = name
        self._heard = heard
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._gone = threading.Event()
        self._sending = threading.Lock()
        self._waiting: collections.deque[link.Message] = collections.deque()
        self._ready: asyncio.Future[Mapping[str, Any]] = self._loop.create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._bells: list[int] = []
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._pump: pump.Pump | None = None
        self._sender: link.Sender | None = None
        self._killed_for = ""

    async def start(self) -> None:
        """OSError where the system has no more processes, memory or descriptors."""
        control, theirs = socket.socketpair()
        self._control = control
        areas: list[int] = []
        with theirs:
            try:
                areas += [memory.create(f"tms-{self._name}"[:200]) for _ in range(2)]
                self._bells += [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
                self._process = await self._spawned(theirs.fileno(), areas)
                self._connect(areas)
            except BaseException:
                self._release()
                raise
            finally:
                for descriptor in areas:
                    os.close(descriptor)
        self._follow()

    async def set_up(self, told: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """What the model's code says once it is loaded; `error` where it could not be, or took longer (0: no bound)."""
        self.post(link.Message(wire.Kind.SETUP, 0, wire.pack(told)))
        try:
            async with asyncio.timeout(timeout_s or None):
                return await self._ready
        except TimeoutError:
            self.kill(words := f"it was not ready within {timeout_s:g} seconds")
            return {"error": words}

    @property
    def id(self) -> int:
        """The system's number of the process."""
        return self._process.pid if self._process is not None else 0

    def send(self, message: link.Message) -> bool:
        """Sends from any thread but the loop's, waiting for room; False where it has ended. ValueError if it never has."""
        with self._sending:
            sender = self._sender
            if sender is None:
                return False
            sender.check(message)
            while not sender.send(message):
                sender.publish()
                if self._gone.wait(_RETRY_S):
                    return False
            sender.publish()
        return True

    def post(self, message: link.Message) -> None:
        """Sends from the loop: at once, or when there is room and no other thread is at it."""
        if not self._gone.is_set():
            self._waiting.append(message)
            self._send_waiting()

    def check(self, message: link.Message) -> None:
        """Raises ValueError where it can never be sent."""
        if self._sender is not None:
            self._sender.check(message)

    async def end(self, grace_s: float) -> None:
        """Lets it finish, and kills it after so many seconds. Returns once its memory is free."""
        self.post(link.Message(wire.Kind.STOP, 0))
        if self._process is None:
            return
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            self.kill(f"it did not end within {grace_s:g} seconds")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self, reason: str) -> None:
        """Ends it at once; whoever waits for it is told the reason."""
        self._killed_for = self._killed_for or reason
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _spawned(self, control: int, areas: list[int]) -> asyncio.subprocess.Process:
        theirs = (control, areas[0], self._bells[0], areas[1], self._bells[1])
        command = [sys.executable, "-P", "-u", "-m", _PROGRAM, *map(str, theirs), str(os.getpid()), self._name]
        paths = [_FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])]
        return await asyncio.create_subprocess_exec(
            *command,
            pass_fds=theirs,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A signal to the worker's group is the worker's to act on.
            start_new_session=True,
        )

    def _connect(self, areas: list[int]) -> None:
        self._sender = link.Sender(memory.Area(areas[0]), self._bells[0])
        receiver = link.Receiver(memory.Area(areas[1]), self._bells[1])
        self._pump = pump.Pump(receiver, self._handle, _nothing, self.kill)

    def _follow(self) -> None:
        assert self._process is not None
        streams = (self._process.stdout, self._process.stderr)
        self._tasks = [self._loop.create_task(self._lines(stream)) for stream in streams if stream is not None]
        self._tasks.append(self._loop.create_task(self._wait(list(self._tasks))))

    async def _wait(self, printing: list[asyncio.Task[None]]) -> None:
        assert self._process is not None
        status = await self._process.wait()
        if self._pump is not None:
            self._pump.finish()
        words = self._killed_for or _ending(status)
        if not self._ready.done():
            self._ready.set_result({"error": f"the process of the model ended: {words}"})
        self._release()
        self._ended(words)
        # What it started itself may hold its output open.
        await asyncio.wait(printing, timeout=1.0)
        for each in printing:
            each.cancel()

    async def _lines(self, stream: asyncio.StreamReader) -> None:
        """Each line that the model prints, cut where it is very long."""
        rest = b""
        while chunk := await stream.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            self._print(lines)
        self._print([rest])

    def _print(self, lines: list[bytes]) -> None:
        for each in lines:
            if each.strip():
                log.info("python.output", instance=self._name, line=each[:_LONGEST_LINE].decode(errors="replace"))

    def _handle(self, message: link.Message) -> None:
        if message.kind == wire.Kind.READY:
            if not self._ready.done():
                self._ready.set_result(wire.unpack(message.head))
        elif message.kind == wire.Kind.LOG:
            level, words = wire.unpack(message.head)
            getattr(log, _LEVELS.get(level, "info"))("python.log", instance=self._name, message=words)
        else:
            self._heard(message)

    def _send_waiting(self) -> None:
        if not self._waiting or self._gone.is_set() or self._sender is None:
            return
        if self._sending.acquire(blocking=False):
            try:
                while self._waiting and self._sender.send(self._waiting[0]):
                    self._waiting.popleft()
                self._sender.publish()
            finally:
                self._sending.release()
        if self._waiting:
            self._loop.call_later(_RETRY_S, self._send_waiting)

    def _release(self) -> None:
        """Gives back what is not in use by answers that are still on their way."""
        self._gone.set()
        self._waiting.clear()
        if self._pump is not None:
            self._pump.stop()
        self._pump = None
        if self._control is not None:
            self._control.close()
        with self._sending:
            for bell in self._bells:
                os.close(bell)
            self._bells.clear()
            self._sender = None


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"


def _nothing() -> None:
    """After a turn nothing is left to do."""
