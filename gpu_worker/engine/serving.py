"""What serves a model version, whatever its kind: the methods that all schedulers have. Only a protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from gpu_worker.engine import border, crew, delivery, regions, statistics, tracing
from gpu_worker.runtime import port


class Scheduler(Protocol):
    """Serves from its making until `stop`. Only `join` blocks."""

    @property
    def available(self) -> bool:
        """Whether anything is left that can run what comes."""
        ...

    def submit(
        self,
        requests: Iterable[border.InferRequest],
        loop: asyncio.AbstractEventLoop,
        arrival_ns: int,
        shared: regions.Regions,
        tracer: tracing.Tracer = tracing.NOBODY,
    ) -> list[delivery.Answered]:
        """Takes the requests in; gives back those that are refused, with the reason."""
        ...

    def prepare(self, programs: Sequence[port.Program]) -> crew.Change:
        """Starts what is missing to serve through these, one instance for each entry; serves as before until `settle`."""
        ...

    def drop(self, change: crew.Change) -> None:
        """Ends what was prepared, and serves on as before."""
        ...

    def settle(self, change: crew.Change) -> None:
        """Serves as was prepared from now on."""
        ...

    def waiting(self) -> statistics.Waiting:
        """What has no answer yet."""
        ...

    def stop(self) -> None:
        """Takes nothing more; what it has accepted will finish."""
        ...

    def abandon(self) -> None:
        """Takes nothing more and answers what waits with the stopping error."""
        ...

    def join(self, until_s: float) -> bool:
        """Blocks until all has ended, at most until that monotonic time; true if it has."""
        ...
