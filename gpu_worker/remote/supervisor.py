"""The first process of several: starts the engine process and the fronts, restarts fronts, ends all.

Decides what each end of a process means. A front that dies is replaced after a moment, and the engine told to forget
it; a front that cannot even start ends the worker, as does an engine that dies. Must never leave a process behind: each
watches the channel to this one and ends with it, however it ends. Serves nothing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Sequence

import structlog

from gpu_worker import logs, ready
from gpu_worker import settings as worker_settings
from gpu_worker.ipc import memory
from gpu_worker.remote import channel, child, ports

log = structlog.get_logger(__name__)

_CLOSE_S = 10.0
_LOST_S = 2.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_GOOD_LIFE_S = 60.0


def run(settings: worker_settings.Settings, arguments: Sequence[str]) -> int:
    """The exit status: 0 after a signal, that of the engine where it failed, else 1."""
    return asyncio.run(Supervisor(settings, arguments).run())


class Supervisor:
    """Runs once."""

    def __init__(self, settings: worker_settings.Settings, arguments: Sequence[str]) -> None:
        self._settings = settings
        self._arguments = arguments
        self._reserved: list[ports.Reserved] = []
        self._ports: dict[str, int | None] = {"http": None, "grpc": None, "metrics": None}
        self._engine = _Engine(arguments)
        self._fronts = [_Front(index, self) for index in range(settings.frontends)]
        self._signals = 0
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Serves until a signal or the end of the engine."""
        self._listen_to_signals()
        status = 1
        try:
            self._reserve()
            status = await self._serve()
        except OSError as error:
            log.error("worker.start_failed", reason=str(error))  # noqa: TRY400 - the reason says all
        drained = await self._end(status)
        for reserved in self._reserved:
            reserved.close()
        log.info("worker.stopped", drained=drained)
        return status

    @property
    def arguments(self) -> Sequence[str]:
        return self._arguments

    @property
    def ports(self) -> dict[str, int | None]:
        """By front; None where it is off or not bound yet."""
        return self._ports

    @property
    def engine(self) -> _Engine:
        return self._engine

    def _reserve(self) -> None:
        listens = {"http": self._settings.http, "grpc": self._settings.grpc}
        for name, listen in listens.items():
            if listen is not None:
                reserved = ports.Reserved(listen.address, listen.port, shared=listen.reuse_port)
                self._reserved.append(reserved)
                self._ports[name] = reserved.port

    async def _serve(self) -> int:
        """Until a signal (0), or until a process ended that there is no worker without (its status)."""
        await self._engine.start()
        ended = asyncio.ensure_future(self._engine.process.wait())
        for front in self._fronts:
            front.begin()
        failed = [asyncio.ensure_future(front.failed.wait()) for front in self._fronts]
        stopped = asyncio.ensure_future(self._stop.wait())
        working = asyncio.ensure_future(self._report())
        try:
            await asyncio.wait({ended, stopped, *failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, stopped, working, *failed):
                task.cancel()
        if self._stop.is_set():
            return 0
        if ended.done() and not ended.cancelled():
            log.error("engine.ended", status=ended.result())
            return ended.result() if ended.result() > 0 else 1
        return 1

    async def _report(self) -> None:
        """Tells the world once all listen, and again once the models are loaded."""
        await asyncio.gather(self._engine.listening.wait(), *(front.listening.wait() for front in self._fronts))
        self._ports["metrics"] = self._engine.metrics_port
        log.info("worker.listening", frontends=len(self._fronts), **self._ports)
        await self._engine.loaded.wait()
        log.info("worker.ready", **self._ports)
        ready.write(self._settings.ready_file, self._ports)

    async def _end(self, status: int) -> bool:
        timeout_s = self._settings.exit_timeout_s if status == 0 else 0.0
        log.info("worker.draining", timeout_s=timeout_s)
        ready.remove(self._settings.ready_file)
        until_s = asyncio.get_running_loop().time() + timeout_s
        living = self._engine.process.running
        wait_s = timeout_s + _CLOSE_S if living else _LOST_S
        left = await asyncio.gather(*(front.end(timeout_s, wait_s, engine_lost=not living) for front in self._fronts))
        rest_s = max(0.0, until_s - asyncio.get_running_loop().time())
        return await self._engine.end(rest_s, rest_s + _CLOSE_S) and all(left)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        if self._signals > 1:
            for each in (self._engine.process, *(front.process for front in self._fronts)):
                each.kill()
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(128 + number)
        log.info("worker.signalled", signal=signal.Signals(number).name)
        self._stop.set()


class _Engine:
    """The engine process, as it is seen from here."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.process = child.Child("engine", arguments, self._heard)
        self.listening = asyncio.Event()
        self.loaded = asyncio.Event()
        self.metrics_port: int | None = None
        self.given_up: dict[int, child.Child] = {}
        self._drained = False

    async def start(self) -> None:
        await self.process.start()

    async def end(self, timeout_s: float, wait_s: float) -> bool:
        """Drains it; false where it did not end by itself in time, or had to leave something behind."""
        self.process.tell("drain", timeout_s=timeout_s)
        ended = await self.process.end(wait_s)
        return ended and self._drained

    def _heard(self, words: channel.Words, _descriptors: list[int]) -> None:
        if words["kind"] == "listening":
            self.metrics_port = words["metrics"]
            self.listening.set()
        elif words["kind"] == "loaded":
            self.loaded.set()
        elif words["kind"] == "drained":
            self._drained = words["drained"]
        elif words["kind"] == "log":
            logs.follow(words["settings"])
        elif words["kind"] == "given_up" and words["serial"] in self.given_up:
            self.given_up[words["serial"]].kill()


class _Front:
    """The place of one front, in which processes follow each other."""

    _serials = itertools.count()

    def __init__(self, index: int, owner: Supervisor) -> None:
        self._index = index
        self._owner = owner
        self.listening = asyncio.Event()
        self.failed = asyncio.Event()
        self.process = self._child()
        self._keeper: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._drained = False

    def begin(self) -> None:
        """From now on there is a process, or soon another."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def end(self, timeout_s: float, wait_s: float, *, engine_lost: bool) -> bool:
        """Drains the process that there is; false where it did not do so in time."""
        self._ending.set()
        if self._keeper is None:
            return True
        drained = True
        if self.process.running:
            self._drained = False
            self.process.tell("lost" if engine_lost else "drain", timeout_s=timeout_s)
            drained = await self.process.end(wait_s) and self._drained
        await self._keeper
        return drained

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._ending.is_set():
            lived_s = await self._live()
            if not self.listening.is_set():
                # What cannot start once will not later: the address is taken, or a file is wrong.
                self.failed.set()
                return
            if lived_s > _GOOD_LIFE_S:
                pause_s = _FIRST_PAUSE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._ending.wait()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _live(self) -> float:
        """One process from start to end; how long it lived."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        serial = next(self._serials)
        engine = self._owner.engine
        self.process = self._child()
        engine.given_up[serial] = self.process
        try:
            status = await self._run(serial)
        finally:
            engine.process.tell("detach", serial=serial)
            del engine.given_up[serial]
        if not self._ending.is_set():
            log.error("front.ended", front=self._index, status=status)
        return loop.time() - started_s

    async def _run(self, serial: int) -> int:
        try:
            await self.process.start()
            self._connect(serial)
        except OSError as error:
            # No descriptors or no memory now: there may be some after the pause.
            log.error("front.start_failed", front=self._index, reason=str(error))  # noqa: TRY400 - the reason says all
            self.process.kill()
        if self._ending.is_set():
            self.process.kill()
        return await self.process.wait()

    def _connect(self, serial: int) -> None:
        """Gives the new process and the engine the memory and the bells between them."""
        held: list[int] = []
        try:
            for name in ("tms-to-engine", "tms-to-front"):
                held.append(memory.create(name))
                held.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            self._owner.engine.process.tell("attach", held, serial=serial)
            shared = {name: self._owner.ports[name] for name in ("http", "grpc")}
            self.process.tell("begin", held, index=self._index, **shared)
        finally:
            for descriptor in held:
                os.close(descriptor)

    def _child(self) -> child.Child:
        return child.Child("front", self._owner.arguments, self._heard)

    def _heard(self, words: channel.Words, _descriptors: list[int]) -> None:
        if words["kind"] == "listening":
            self.listening.set()
        elif words["kind"] == "drained":
            self._drained = words["drained"]
