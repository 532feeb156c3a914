"""Worker groups as supervised pairs of processes on this host.

Decides when pairs start, come back and go; what they run is the administrator's choice, what is wanted is the caller's.
Never loses a process: each is found again by a later server, noted or not, and a group half launched or half retired
when the server died is finished by the next one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import os
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import TypeVar

import structlog

from tms_server import clock as clock_module
from tms_server.backends import changes
from tms_server.backends.processes import addresses, commands, layout, logs, member, proc
from tms_server.backends.processes import group as group_module
from tms_server.backends.processes import options as options_module
from tms_server.model import errors, ids, resources
from tms_server.ports import backend

log = structlog.get_logger(__name__)
T = TypeVar("T")
_TURN_OVER_EVERY = dt.timedelta(seconds=5)


class ProcessBackend:
    """Made with `open`; one per data directory. Errors of the disk are Unavailable."""

    def __init__(self, options: options_module.Options, clock: clock_module.Clock) -> None:
        self._options = options
        self._clock = clock
        self._layout = layout.Layout(options.data_dir)
        self._changes = changes.Changes()
        self._around = group_module.Surroundings(options, clock, self._changes.notify)
        self._groups: dict[ids.GroupId, group_module.Group] = {}
        self._locks: weakref.WeakValueDictionary[ids.GroupId, asyncio.Lock] = weakref.WeakValueDictionary()
        self._lock_descriptor: int | None = None
        self._turner: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, options: options_module.Options, clock: clock_module.Clock) -> ProcessBackend:
        """Takes the data directory and adopts what an earlier server left; FailedPrecondition if another server has it."""
        opened = cls(options, clock)
        try:
            opened._lock_descriptor = await _on_disk(opened._layout.open)
            await opened._adopt()
        except BaseException:
            await opened._let_go()
            raise
        opened._turner = asyncio.create_task(opened._turn_logs_over(), name="turns logs over")
        return opened

    @property
    def routes(self) -> bool:
        return False

    @property
    def scales(self) -> bool:
        return False

    def refuse(self, worker: resources.WorkerSpec) -> str | None:
        return commands.refuse(self._options, worker)

    def refuse_name(self, namespace: ids.Namespace, name: ids.LeaseName) -> str | None:
        del namespace, name
        return None

    def warn(self, worker: resources.WorkerSpec) -> backend.Trouble | None:
        del worker
        return None

    def differs(self, spec: backend.LaunchSpec) -> bool:
        """Never: a pair that runs keeps the shape it was launched with, and nobody else changes it."""
        del spec
        return False

    async def route(self, routes: Sequence[backend.Route]) -> Mapping[str, backend.Trouble]:
        del routes
        return {}

    def routed(self, worker: ids.WorkerId) -> frozenset[ids.LeaseId]:
        del worker
        return frozenset()

    def capacity_bytes(self, worker: resources.WorkerSpec) -> int:
        asked = worker.resources.memory_bytes or self._options.default_memory_bytes
        return max(0, asked - self._options.margin_bytes)

    async def observe(self) -> tuple[backend.Observed, ...]:
        return tuple(group.observed() for group in self._groups.values())

    async def launch(self, spec: backend.LaunchSpec) -> None:
        """Beside the port: FailedPrecondition for what `refuse` refuses, ResourceExhausted while no device is free."""
        if reason := self.refuse(spec.worker):
            raise errors.FailedPrecondition(reason)
        if self._lock_descriptor is None:
            raise errors.Unavailable("the backend is closed")
        async with self._lock(spec.group_id):
            group = self._groups.get(spec.group_id)
            if group is not None and group.stopping:
                # An earlier retirement was interrupted.
                await self._finish(group)
                group = None
            if group is None:
                stored = layout.Stored(spec, self._free_devices(spec.worker.resources.gpus))
                await self._begin(stored)

    async def retire(self, group_id: ids.GroupId) -> None:
        async with self._lock(group_id):
            group = self._groups.get(group_id)
            if group is not None:
                group.stopping = True
                self._changes.notify()
                await _on_disk(lambda: self._layout.mark_retiring(group_id))
                await self._finish(group)

    async def tend(self) -> None:
        """Groups tend themselves."""

    def publish(self, owner: str, taken: Collection[resources.Endpoint]) -> resources.Endpoint:
        return addresses.publish(owner, self._options.installation_id, taken)

    async def logs(self, group_id: ids.GroupId, tail: int, *, follow: bool) -> AsyncIterator[backend.LogLine]:
        group = self._groups.get(group_id)
        if group is None:
            raise errors.NotFound(f"group {group_id} does not run here")
        readers = {role: logs.Reader(group.directory / f"{role}.log") for role in group_module.ROLES}
        for role, reader in readers.items():
            for text in await _on_disk(functools.partial(reader.tail, tail)):
                yield backend.LogLine(group_id=group_id, source=role, text=text)
        if follow:
            until = logs.Until(lambda: self._groups.get(group_id) is group, self._clock)
            async for role, text in logs.follow(readers, until):
                yield backend.LogLine(group_id=group_id, source=role, text=text)

    def watch(self) -> AsyncIterator[None]:
        return self._changes.watch()

    async def close(self) -> None:
        """With `stop_at_exit` the processes end, and a later server starts those that are still wanted."""
        if self._options.stop_at_exit:
            ends = await asyncio.gather(*(group.stop() for group in self._groups.values()), return_exceptions=True)
            for end in filter(None, ends):
                log.error("group.not_stopped", why=str(end))
        await self._let_go()

    async def _adopt(self) -> None:
        stored, broken = await _on_disk(self._layout.load)
        for group_id in broken:
            log.error("group.unreadable", group=group_id)
            await self._remove_unreadable(group_id)
        await asyncio.gather(*(self._adopt_group(self._group(each)) for each in stored))
        log.info("groups.adopted", groups=len(self._groups))

    async def _adopt_group(self, group: group_module.Group) -> None:
        await group.adopt()
        if not self._layout.retiring(group.stored.spec.group_id):
            group.start()
            return
        group.stopping = True
        try:
            await self._finish(group)
        except errors.Unavailable as failure:
            # It stays observed, so that the caller retires it again.
            log.warning("group.not_retired", group=group.stored.spec.group_id, why=str(failure))

    async def _remove_unreadable(self, group_id: ids.GroupId) -> None:
        """Nobody can say what it should run, so nothing of it may run."""
        directory = self._layout.directory(group_id)
        for role in reversed(group_module.ROLES):
            await _on_disk(functools.partial(proc.sweep, member.mark(directory, role)))
        await _on_disk(lambda: self._layout.remove(group_id))

    async def _begin(self, stored: layout.Stored) -> None:
        # Known before the first wait, so that nobody else is given its devices.
        group = self._group(stored)
        self._changes.notify()
        try:
            await _on_disk(lambda: self._layout.create(stored))
        except BaseException:
            del self._groups[stored.spec.group_id]
            self._changes.notify()
            raise
        group.start()

    async def _finish(self, group: group_module.Group) -> None:
        """Ends a group that is marked as retiring; it stays observed until all of it is gone."""
        group_id = group.stored.spec.group_id
        await group.stop()
        await _on_disk(lambda: self._layout.remove(group_id))
        del self._groups[group_id]
        self._changes.notify()

    def _group(self, stored: layout.Stored) -> group_module.Group:
        directory = self._layout.directory(stored.spec.group_id)
        group = group_module.Group(stored, directory, self._around)
        self._groups[stored.spec.group_id] = group
        return group

    def _free_devices(self, count: int) -> tuple[str, ...]:
        held = {device for group in self._groups.values() for device in group.stored.devices}
        free = tuple(device for device in self._options.gpus if device not in held)
        if count > len(free):
            raise errors.ResourceExhausted(f"resources.gpus: {count} asked, {len(free)} of them are free now")
        return free[:count]

    def _lock(self, group_id: ids.GroupId) -> asyncio.Lock:
        """Serialises what happens to one group; kept only while somebody holds it or waits for it."""
        return self._locks.setdefault(group_id, asyncio.Lock())

    async def _turn_logs_over(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.now() + _TURN_OVER_EVERY)
            for group in tuple(self._groups.values()):
                for role in group_module.ROLES:
                    path = group.directory / f"{role}.log"
                    try:
                        await asyncio.to_thread(logs.turn_over, path, self._options.log_bytes)
                    except OSError as failure:
                        log.warning("log.not_turned_over", path=str(path), why=str(failure))

    async def _let_go(self) -> None:
        if self._turner is not None:
            self._turner.cancel()
            await asyncio.wait([self._turner])
        for group in self._groups.values():
            await group.detach()
        self._groups.clear()
        self._changes.close()
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None


async def _on_disk(work: Callable[[], T]) -> T:
    """Runs blocking work to its end in a thread; what the disk refuses is Unavailable."""
    try:
        return await member.to_the_end(work)
    except OSError as failure:
        raise errors.Unavailable(f"the data directory does not answer: {failure}") from failure
