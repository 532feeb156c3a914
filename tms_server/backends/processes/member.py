"""Keeps one program of a pair running: starts it, adopts it, restarts it after a pause, stops it for good."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import pathlib
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from tms_server import clock as clock_module
from tms_server.backends.processes import layout, options, proc
from tms_server.model import errors
from tms_server.ports import backend

log = structlog.get_logger(__name__)
T = TypeVar("T")
# A killed process that stays is stuck in the kernel (a dead device, a dead mount).
_KILL_BOUND_S = 15.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to keep running. `argv` is asked before each start; KeyError: it is no longer allowed."""

    role: str
    directory: pathlib.Path
    argv: Callable[[], Sequence[str]]
    environment: Mapping[str, str]

    @property
    def mark(self) -> str:
        return mark(self.directory, self.role)

    @property
    def log(self) -> pathlib.Path:
        return self.directory / f"{self.role}.log"


class Member:
    """One supervised program. `changed` is called on the loop whenever its phase or its restarts change."""

    def __init__(
        self,
        program: Program,
        backoff: options.Backoff,
        clock: clock_module.Clock,
        changed: Callable[[], None],
    ) -> None:
        self.phase = backend.Phase.STARTING
        self.message = ""
        self.restarts = 0
        self._program = program
        self._backoff = backoff
        self._clock = clock
        self._changed = changed
        self._process: proc.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def adopt(self, *, same_argv: bool) -> bool:
        """Takes over the process that an earlier server started, if it lives; one with another argv may be unwelcome."""
        note = await to_the_end(lambda: layout.read_note(self._program.directory, self._program.role))
        if note is None:
            return False
        self.restarts = note.restarts
        self._process = proc.find(note.identity)
        if self._process is None:
            # It died unseen, so what starts now is a restart.
            self.restarts += 1
            return False
        if same_argv and note.argv != self._argv():
            await self._end(dt.timedelta(seconds=5))
            return False
        return True

    def start(self) -> None:
        """Begins to keep the program running."""
        name = f"{self._program.role} of {self._program.directory.name}"
        self._keeper = asyncio.create_task(self._keep(), name=f"keeper of the {name}")
        self._keeper.add_done_callback(self._keeper_ended)

    async def stop(self, grace: dt.timedelta) -> None:
        """Ends the program and all it left; Unavailable when a part of it cannot be killed. May be called again."""
        await self._let_keeper_go()
        await self._end(grace)
        await to_the_end(lambda: proc.sweep(self._program.mark))

    async def detach(self) -> None:
        """Lets go of the program and leaves it running."""
        await self._let_keeper_go()
        if self._process is not None:
            self._process.forget()
            self._process = None

    async def _keep(self) -> None:
        failures = 0
        while True:
            began = self._clock.now()
            ended = await self._run()
            stable = self._clock.now() - began >= self._backoff.stable
            failures = 1 if stable else failures + 1
            pause = self._backoff.pause(failures)
            log.warning("process.ended", process=self._program.mark, how=ended, pause_s=pause.total_seconds())
            message = f"{self._program.role}: {ended}; started again after {pause.total_seconds():g} s"
            self._enter(backend.Phase.BACKING_OFF, message)
            await self._clock.sleep_until(self._clock.now() + pause)
            self.restarts += 1

    async def _run(self) -> str:
        """Runs the program once; answers how it ended."""
        if self._process is None:
            try:
                await to_the_end(self._spawn)
            except (OSError, ValueError) as failure:
                return f"cannot be started: {failure}"
            except KeyError as failure:
                return f"cannot be started: command {failure} is no longer allowed"
        process = self._process
        assert process is not None
        self._enter(backend.Phase.RUNNING, self.message)
        ended = await process.wait()
        process.forget()
        self._process = None
        return ended

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        """It ends by being cancelled only; anything else is a defect that must be seen."""
        if not keeper.cancelled() and (failure := keeper.exception()):
            log.error("process.keeper_failed", process=self._program.mark, exc_info=failure)
            self._enter(backend.Phase.BACKING_OFF, f"{self._program.role}: not supervised any more: {failure!r}")

    def _spawn(self) -> None:
        """In a thread. What an earlier start left is gone before the next one, noted or not."""
        argv = self._argv()
        proc.sweep(self._program.mark)
        wanted = proc.Start(
            argv=argv,
            environment=self._program.environment,
            mark=self._program.mark,
            directory=self._program.directory,
            log=self._program.log,
        )
        self._process = proc.start(wanted)
        identity = self._process.identity
        log.info("process.started", process=self._program.mark, pid=identity.pid)
        try:
            layout.write_note(self._program.directory, self._program.role, layout.Note(identity, argv, self.restarts))
        except OSError as failure:
            # It runs; a later server that finds no note sweeps it by its mark and starts it anew.
            log.warning("process.not_noted", process=self._program.mark, why=str(failure))

    async def _end(self, grace: dt.timedelta) -> None:
        process = self._process
        if process is None:
            return
        process.send(signal.SIGTERM)
        if not await _ended_within(process, grace.total_seconds()):
            log.warning("process.killed", process=self._program.mark, grace_s=grace.total_seconds())
            process.send(signal.SIGKILL)
            if not await _ended_within(process, _KILL_BOUND_S):
                raise errors.Unavailable(f"{self._program.role} (pid {process.identity.pid}) cannot be killed")
        process.forget()
        self._process = None

    async def _let_keeper_go(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None

    def _argv(self) -> tuple[str, ...]:
        return tuple(self._program.argv())

    def _enter(self, phase: backend.Phase, message: str) -> None:
        self.phase, self.message = phase, message
        self._changed()


def mark(directory: pathlib.Path, role: str) -> str:
    """What marks all processes of one role of the group in that directory."""
    return f"{directory}:{role}"


async def _ended_within(process: proc.Process, bound_s: float) -> bool:
    try:
        async with asyncio.timeout(bound_s):
            await process.wait()
    except TimeoutError:
        return False
    return True


async def to_the_end(work: Callable[[], T]) -> T:
    """Runs blocking work in a thread; a cancelled caller still leaves only after the work is done."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (failure := task.exception()):
            log.info("process.work_failed_at_the_end", why=str(failure))
        raise
