"""The way from the fronts to the engine.

Gathers the requests of one turn of the event loop into one list, decides how many may be in flight and how many bytes
they may hold, and refuses new ones once the server stops. Must never lose a request: each is submitted, or answered here.
"""

from __future__ import annotations

import asyncio
import dataclasses

from gpu_worker.engine import border

FULL = "Server holds too many bytes of requests; try again later"
STOPPING = "Server is stopping, scheduler for model has stopped accepting new inference requests"


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """Most requests in flight, and most bytes of their bodies, over all connections."""

    requests: int = 16384
    body_bytes: int = 4 * 2**30


class Intake:
    """Belongs to one event loop. A front calls `finished` once for each request that `submit` took."""

    def __init__(self, engine: border.Engine, bounds: Bounds | None = None) -> None:
        self._engine = engine
        self._bounds = bounds or Bounds()
        self._gathered: list[border.InferRequest] = []
        self._in_flight = 0
        self._taken = 0
        self._held_bytes = 0
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, request: border.InferRequest, size_bytes: int = 0) -> None:
        """Hands `request` to the engine, together with all that come in this turn of the loop; books `size_bytes`.

        Raises InferenceError (unavailable) once stopped, and when too many are in flight or there is no room.
        """
        if self._stopping:
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, STOPPING)
        if self._in_flight >= self._bounds.requests:
            raise border.InferenceError(
                border.ErrorKind.UNAVAILABLE, f"Server has {self._in_flight} requests in flight; try again later"
            )
        if self._held_bytes + size_bytes > self._bounds.body_bytes:
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, FULL)
        self._held_bytes += size_bytes
        if not self._in_flight:
            self._idle.clear()
        self._in_flight += 1
        self._taken += 1
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._flush)
        self._gathered.append(request)

    def finished(self, size_bytes: int = 0) -> None:
        """As `let_go` too, with `size_bytes`."""
        self._held_bytes -= size_bytes
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    def hold(self, size_bytes: int) -> bool:
        """Books bytes of a request's body; False, and nothing is booked, when there is no room."""
        if self._held_bytes + size_bytes > self._bounds.body_bytes:
            return False
        self._held_bytes += size_bytes
        return True

    def let_go(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes

    def stop(self) -> None:
        """From now on each new request is refused as unavailable."""
        self._stopping = True

    async def wait_idle(self) -> None:
        """Returns once nothing is in flight."""
        await self._idle.wait()

    async def quiet(self, moment_s: float) -> None:
        """Returns once nothing has come or been in flight for so long."""
        taken = -1
        while taken != self._taken:
            await self._idle.wait()
            taken = self._taken
            await asyncio.sleep(moment_s)  # noqa: TID251 - that nothing happens is no event

    def _flush(self) -> None:
        requests, self._gathered = self._gathered, []
        self._engine.submit(requests)
