"""Lines of a group's containers, through the API server: the last ones, then those to come from pods that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from tms_server.backends import changes
from tms_server.backends.kubernetes import client, failures, view
from tms_server.model import errors, ids
from tms_server.ports import backend

Json = dict[str, Any]
Queue = asyncio.Queue[backend.LogLine | errors.TmsError | None]
CONTAINERS = ("worker", "sidecar")
MOST_LINES = 10_000
_MOST_WAITING = 1_000
"""Lines that a slow reader may be behind; the API server waits for the rest."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One run of one container; a restart is another."""

    pod: str
    container: str
    run: str


def sources(group: view.GroupView) -> list[Source]:
    """The runs that have begun and can be read now."""
    found = [
        Source(pod["metadata"]["name"], each["name"], each["containerID"])
        for pod in group.pods
        for key in ("containerStatuses", "initContainerStatuses")
        for each in (pod.get("status") or {}).get(key) or []
        if each["name"] in CONTAINERS and each.get("containerID")
    ]
    return sorted(found, key=lambda each: (each.pod, CONTAINERS.index(each.container)))


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """Reads logs of one group."""

    api: client.Api
    view: view.View
    group_id: ids.GroupId

    async def tail(self, lines: int) -> AsyncGenerator[backend.LogLine, None]:
        """The last lines of each container."""
        for source in sources(self.view.group(self.group_id)):
            async for line in self._lines(source, {"tailLines": str(_bounded(lines))}):
                yield line

    async def follow(self, lines: int, changed: changes.Changes) -> AsyncGenerator[backend.LogLine, None]:
        """The last lines and those to come, until the group is gone or `changed` is closed."""
        queue: Queue = asyncio.Queue(_MOST_WAITING)
        steps = changed.watch()
        collector = asyncio.create_task(self._collect(lines, steps, queue), name=f"follows logs of {self.group_id}")
        try:
            while (line := await queue.get()) is not None:
                if isinstance(line, errors.TmsError):
                    raise line
                yield line
        finally:
            collector.cancel()
            await asyncio.wait([collector])

    async def _collect(self, lines: int, steps: AsyncIterator[None], queue: Queue) -> None:
        reading: dict[Source, asyncio.Task[None]] = {}
        first = True
        try:
            while (group := self.view.group(self.group_id)).exists:
                present = sources(group)
                # A container that dies again and again has many runs: those that are read and gone are forgotten.
                reading = {key: task for key, task in reading.items() if key in present or not task.done()}
                for source in present:
                    if source not in reading:
                        # A run that begins later is read from its first line.
                        query = {"follow": "true", **({"tailLines": str(_bounded(lines))} if first else {})}
                        reading[source] = asyncio.create_task(self._pump(source, query, queue))
                first = False
                if await anext(steps, "closed") == "closed":
                    break
            if reading:
                await asyncio.wait(reading.values(), timeout=1)
        finally:
            for task in reading.values():
                task.cancel()
            if reading:
                await asyncio.wait(reading.values())
        await queue.put(None)

    async def _pump(self, source: Source, query: dict[str, str], queue: Queue) -> None:
        try:
            async for line in self._lines(source, query):
                await queue.put(line)
        except errors.TmsError as failure:
            await queue.put(failure)

    async def _lines(self, source: Source, query: dict[str, str]) -> AsyncGenerator[backend.LogLine, None]:
        """What cannot be read (any more) has no lines."""
        asked = {"container": source.container, **query}
        with contextlib.suppress(errors.NotFound, failures.Refused):
            async for text in self.api.log_lines(source.pod, asked):
                yield backend.LogLine(
                    group_id=self.group_id, source=source.container, text=text, replica=ids.ReplicaId(source.pod)
                )


def _bounded(lines: int) -> int:
    return max(0, min(lines, MOST_LINES))
