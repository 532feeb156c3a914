"""Keeps on disk what a sidecar that starts again begins from.

Without it a restart costs loads, so a full disk is told and no more. Decides when what is written: the last desired state between two passes, what is loaded before each load. That clients
were once led here is kept for good: a later state that says less does not take it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from protos.tms.v1 import agent_pb2
from sidecar import state, values, wire

log = structlog.get_logger()


class Memory:
    """The state on disk, written in threads. Belongs to one event loop."""

    def __init__(self, files: state.State) -> None:
        self._files = files
        self._unsaved: agent_pb2.Desired | None = None
        self._writing = asyncio.Lock()
        self.loaded: dict[str, values.ModelKey] = {}

    async def restore(self) -> values.Desired:
        """What was desired last; reads `loaded`, too."""
        self.loaded = await asyncio.to_thread(self._files.loaded)
        return wire.desired(await asyncio.to_thread(self._files.desired))

    def note(self, desired: agent_pb2.Desired, *, routed: bool) -> None:
        """To be written with the next `save`; `routed` when clients were led here at any time."""
        self._unsaved = agent_pb2.Desired()
        self._unsaved.CopyFrom(desired)
        self._unsaved.routed = routed

    async def save(self) -> None:
        unsaved, self._unsaved = self._unsaved, None
        if unsaved is not None:
            await _written(self._files.save_desired, unsaved)

    async def record(self, name: str, key: values.ModelKey | None) -> None:
        """What is under a name from now on; None for nothing."""
        async with self._writing:
            if key is None:
                self.loaded.pop(name, None)
            else:
                self.loaded[name] = key
            await _written(self._files.save_loaded, dict(self.loaded))


async def _written(save: Callable[..., None], what: object) -> None:
    try:
        await asyncio.to_thread(save, what)
    except OSError as error:
        log.warning("state.unwritable", error=error.strerror)
