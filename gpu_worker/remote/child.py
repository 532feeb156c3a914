"""One process of a worker, as its supervisor sees it.

Decides how it is started: the same program with the same flags, whatever the folder, and a channel to this process. Must
never be left running: `end` waits for a while and then kills it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from gpu_worker.remote import channel

_PROGRAM = "gpu_worker.member"
_FOLDER = str(pathlib.Path(__file__).parents[2])


class Child:
    """Started and ended once. `heard` gets what it tells."""

    def __init__(self, role: str, arguments: Sequence[str], heard: channel.Heard) -> None:
        self._role = role
        self._arguments = arguments
        self._heard = heard
        self._channel: channel.Channel | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """OSError where the system has no more processes or descriptors."""
        ours, theirs = channel.pair()
        with theirs:
            self._channel = channel.Channel(ours, self._heard, _deaf)
            command = [sys.executable, "-P", "-m", _PROGRAM, self._role, str(theirs.fileno()), *self._arguments]
            self._process = await asyncio.create_subprocess_exec(
                *command, pass_fds=(theirs.fileno(),), env=_environment(), stdin=asyncio.subprocess.DEVNULL
            )

    def tell(self, kind: str, descriptors: Sequence[int] = (), **words: Any) -> None:
        """Tells it; nothing happens where it is not there."""
        if self._channel is not None:
            self._channel.tell(kind, descriptors, **words)

    async def wait(self) -> int:
        """Its status once it has ended; negative after a signal."""
        if self._process is None:
            return 0
        return await self._process.wait()

    async def end(self, wait_s: float) -> bool:
        """Waits for it to end by itself, and kills it then; true if it did and all was well."""
        if self._process is None:
            return True
        try:
            async with asyncio.timeout(wait_s):
                return await self._process.wait() == 0
        except TimeoutError:
            self.kill()
            await self._process.wait()
            return False
        finally:
            if self._channel is not None:
                self._channel.close()

    def kill(self) -> None:
        if self.running and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def _environment() -> dict[str, str]:
    """This program's own code comes first, from wherever it was started."""
    paths = [_FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _deaf() -> None:
    """Its end is heard of through the process."""
