"""A whole cluster for the time of one command: starts everything, runs the command inside, stops everything."""

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
import time
import typing

from tests.kubernetes.cluster import binaries, credentials, namespace, programs, supervisor
from tests.kubernetes.cluster import layout as layouts
from tests.kubernetes.cluster import nodes as node_values

_COMMAND_STOP_LIMIT_S = 10.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What cluster to make. `start_limit_s` bounds how long each program may take to be ready.

    A bare one has no nodes and no ways to Services: the API server with its controllers, DNS and nothing else.
    """

    nodes: tuple[node_values.Node, ...]
    bare: bool
    tuning: programs.Tuning
    start_limit_s: float


def run(settings: Settings, directory: pathlib.Path, command: list[str]) -> int:
    """Runs `command` in a cluster whose files are below `directory`, and gives its exit status.

    Raises:
        supervisor.StartError: a program did not become ready.
        namespace.NamespaceError: the namespace could not be laid out.
    """
    supervisor.adopt_orphans()
    layout = layouts.Layout(directory)
    for folder in (layout.logs, layout.configuration("")):
        folder.mkdir()
    try:
        namespace.set_up(directory)
        credentials.write(layout, settings.nodes)
        node_values.write(layout.nodes, settings.nodes)
        return asyncio.run(_run(settings, layout, command))
    finally:
        supervisor.kill_descendants()


async def _run(settings: Settings, layout: layouts.Layout, command: list[str]) -> int:
    keeper = supervisor.Supervisor(layout, settings.start_limit_s)
    with _Signals() as signals:
        try:
            started = time.monotonic()
            await _start(keeper, settings, layout)
            layouts.say(f"ready after {time.monotonic() - started:.1f} s, files in {layout.directory}")
            async with await asyncio.start_unix_server(_Remote(keeper).serve, layout.control_socket):
                return await _run_command(signals, layout, command)
        except asyncio.CancelledError:
            if signals.received is None:
                raise
            return 128 + signals.received
        finally:
            await keeper.close()


async def _start(keeper: supervisor.Supervisor, settings: Settings, layout: layouts.Layout) -> None:
    names = tuple(node.name for node in settings.nodes)
    plan = programs.Plan(layout, binaries.find(), names, settings.tuning)
    await keeper.start_new(programs.etcd(plan))
    await keeper.start_new(programs.api_server(plan))
    try:
        async with asyncio.TaskGroup() as group:
            for ordered in _independent(plan, settings):
                group.create_task(_start_in_turn(keeper, ordered))
    except* supervisor.StartError as failures:
        raise failures.exceptions[0] from None


def _independent(plan: programs.Plan, settings: Settings) -> list[list[programs.Program]]:
    """What can start side by side once the API server is ready; a way to DNS needs DNS first."""
    control = [[programs.controller_manager(plan)], [programs.scheduler(plan)]]
    if settings.bare:
        return [*control, [programs.dns(plan)]]
    return [*control, [programs.kubelet(plan)], [programs.dns(plan), programs.proxy(plan)]]


async def _start_in_turn(keeper: supervisor.Supervisor, ordered: list[programs.Program]) -> None:
    for program in ordered:
        await keeper.start_new(program)


async def _run_command(signals: _Signals, layout: layouts.Layout, command: list[str]) -> int:
    process = await asyncio.create_subprocess_exec(*supervisor.DIE_WITH_PARENT, *command, env=_environment(layout))
    signals.pass_on_to(process)
    status = await process.wait()
    return 128 - status if status < 0 else status


def _environment(layout: layouts.Layout) -> dict[str, str]:
    scripts = str(pathlib.Path(sys.executable).parent)
    return os.environ | {
        "KUBECONFIG": str(layout.kubeconfig("admin")),
        "TMS_CLUSTER": str(layout.directory),
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
    }


class _Signals:
    """What an interrupt means: before the command runs, stop; while it runs, tell it, and end it if it does not end."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._main = asyncio.current_task()
        self._process: asyncio.subprocess.Process | None = None

    def __enter__(self) -> typing.Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the handlers: from here on everything is being stopped, and a signal must not cut that short."""

    def pass_on_to(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def _on_signal(self, number: int) -> None:
        first, self.received = self.received is None, number
        if self._process is None:
            if self._main and first:
                self._main.cancel()
            return
        if number == signal.SIGINT and os.isatty(0):
            return  # the terminal told the command already, and it decides: a shell goes on
        _send(self._process, number)
        asyncio.get_running_loop().call_later(_COMMAND_STOP_LIMIT_S, _send, self._process, signal.SIGKILL)


def _send(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


class _Remote:
    """Lets a test stop and start programs: one line of JSON in, `{"action", "program"}`, one line out, `{"error"}`."""

    def __init__(self, keeper: supervisor.Supervisor) -> None:
        self._actions: dict[str, collections.abc.Callable[[str], collections.abc.Awaitable[None]]] = {
            "stop": keeper.stop,
            "start": keeper.start,
        }
        self._turn = asyncio.Lock()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            error = await self._act(await reader.readline())
            writer.write(json.dumps({"error": error}).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _act(self, line: bytes) -> str | None:
        try:
            order = json.loads(line)
            action, program = self._actions[order["action"]], order["program"]
            async with self._turn:
                await action(program)
        except (ValueError, TypeError, KeyError) as error:
            return f"not an order for a program of this cluster: {error!r}"
        except supervisor.StartError as error:
            return str(error)
        return None
