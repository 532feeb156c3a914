"""Model control by looking at the repositories again and again.

Decides when to look; `repository.watch` decides what a look means. A look that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from gpu_worker import registry
from gpu_worker.engine import border
from gpu_worker.repository import watch

Pause = Callable[[float], Awaitable[None]]
_SETTLE_S = 1.0

log = structlog.get_logger(__name__)


async def pause(seconds: float) -> None:
    """Waits so long on the event loop's clock."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


class Poller:
    """Keeps what is loaded equal to what the repositories hold; `expected` names what should be loaded."""

    def __init__(self, models: registry.Registry, expected: set[str]) -> None:
        self._models = models
        self._expected = expected
        self._watch = watch.Watch({})

    async def begin(self) -> list[str]:
        """The models to load at the start: what changes from now on is seen by `look`. Raises InferenceError."""
        first = await self._models.scan()
        self._watch = watch.Watch(first)
        return sorted(first)

    async def look(self) -> bool:
        """Loads and unloads what has changed; true if something is changing still."""
        try:
            findings = self._watch.compare(await self._models.scan())
        except (border.InferenceError, OSError) as error:
            log.warning("poll.failed", reason=str(error))
            return False
        self._expected.update(findings.load)
        self._expected.difference_update(findings.unload)
        work = [self._models.load(name, {}) for name in findings.load]
        work += [self._models.unload(name) for name in findings.unload]
        # What failed is told by the log, the index and readiness, and is tried again when it changes.
        await asyncio.gather(*work, return_exceptions=True)
        return findings.unsettled

    async def run(self, every_s: float, wait: Pause) -> None:
        """Looks every so many seconds, sooner while something is changing, until cancelled."""
        unsettled = False
        while True:
            await wait(min(_SETTLE_S, every_s) if unsettled else every_s)
            unsettled = await self.look()
