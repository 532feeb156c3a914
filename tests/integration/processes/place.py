"""A place where process backends of consecutive server runs live; nothing started there outlives its test."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import pathlib
import signal
from collections.abc import Callable

from tms_server import clock as clock_module
from tms_server.backends.processes import backend as processes
from tms_server.backends.processes import layout, options, proc
from tms_server.model import ids, resources
from tms_server.ports import backend

BOUND_S = 30
SLEEP = ("/bin/sh", "-c", "echo started; exec sleep 1000")
ENDPOINT = resources.Endpoint("127.64.0.1", 8000, 8001, 8002)


class Site:
    """One data directory; `options` may be replaced between runs."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.clock: clock_module.Clock = clock_module.SystemClock()
        self.options = options.Options(
            data_dir=directory / "data",
            installation_id=ids.InstallationId(str(directory)),
            server="127.0.0.1:1",
            commands={"tms-worker": SLEEP},
            sidecar_command=SLEEP,
            backoff=options.Backoff(first=dt.timedelta(milliseconds=10)),
        )
        self._opened: list[processes.ProcessBackend] = []

    def set(self, **changes: object) -> None:
        self.options = dataclasses.replace(self.options, **changes)  # type: ignore[arg-type] # checked by the tests' use

    def worker(self, script: str) -> None:
        """The worker is this shell script from now on."""
        self.set(commands={"tms-worker": ("/bin/sh", "-c", script)})

    async def open(self) -> processes.ProcessBackend:
        opened = await processes.ProcessBackend.open(self.options, self.clock)
        self._opened.append(opened)
        return opened

    def directory(self, group_id: str) -> pathlib.Path:
        return self.options.data_dir / "groups" / group_id

    def spec(
        self, group_id: str = "g-1", *, endpoint: resources.Endpoint = ENDPOINT, **wanted: int
    ) -> backend.LaunchSpec:
        return backend.LaunchSpec(
            group_id=ids.GroupId(group_id),
            namespace=ids.DEFAULT_NAMESPACE,
            worker=resources.WorkerSpec(resources=resources.Resources(**wanted)),
            endpoint=endpoint,
            token="the token",
        )

    def pid(self, role: str = "worker", group_id: str = "g-1") -> int:
        note = layout.read_note(self.directory(group_id), role)
        assert note is not None
        return note.identity.pid

    def lives(self, role: str = "worker", group_id: str = "g-1") -> bool:
        note = layout.read_note(self.directory(group_id), role)
        return note is not None and is_alive(note.identity)

    def kill(self, role: str = "worker", group_id: str = "g-1") -> None:
        note = layout.read_note(self.directory(group_id), role)
        assert note is not None
        process = proc.find(note.identity)
        assert process is not None
        process.send(signal.SIGKILL)
        process.forget()

    async def clear(self) -> None:
        for opened in self._opened:
            await opened.close()
        self.clock = clock_module.SystemClock()
        self.set(stop_grace=dt.timedelta(seconds=1))
        last = await self.open()
        for observed in await last.observe():
            await last.retire(observed.group_id)
        await last.close()


def is_alive(identity: proc.Identity) -> bool:
    process = proc.find(identity)
    if process is not None:
        process.forget()
    return process is not None


async def until(runs: backend.Backend, reached: Callable[[backend.Observed], bool], group_id: str = "g-1") -> None:
    """Waits for a state of a group on the backend's own watch."""
    steps = runs.watch()
    async with asyncio.timeout(BOUND_S):
        while not any(reached(each) for each in await runs.observe() if each.group_id == group_id):
            await anext(steps)


async def running(runs: backend.Backend, restarts: int = 0, group_id: str = "g-1") -> None:
    await until(runs, lambda each: each.phase is backend.Phase.RUNNING and each.restarts >= restarts, group_id)


async def said(runs: backend.Backend, text: str, role: str = "worker", group_id: str = "g-1") -> list[str]:
    """The lines of a program up to the one wanted."""
    lines: list[str] = []
    async with asyncio.timeout(BOUND_S):
        async for line in runs.logs(ids.GroupId(group_id), 1000, follow=True):
            if line.source == role:
                lines.append(line.text)
                if line.text == text:
                    return lines
    raise AssertionError(f"the {role} never said {text!r} but {lines}")


async def eventually(reached: Callable[[], bool]) -> None:
    """For what tells no event: asks the system again and again, for a bounded time."""
    async with asyncio.timeout(BOUND_S):
        while not await asyncio.to_thread(reached):
            pass
