"""How clients and models leave the worker.

Decides when a model may be unloaded: the closing endpoints are drained; and where clients reach the worker directly,
they were told to go, had the time that their connections may live, and the model has then stood idle for a moment, all
within a bound. Requests that the worker has accepted by then are the worker's to finish. Every wait is bounded or ends
with `closed`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import urllib.parse
from collections.abc import Awaitable, Callable

import structlog

from sidecar import access, backoff, clock, endpoints, errors, http_call, runtime, usage, values

log = structlog.get_logger()

_QUIET_S = 1.0
_LOOK_S = 0.2
_TELL_S = 2.0
_MOST_SAID = 300


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How models leave. `direct`: clients reach the worker without endpoints of ours.

    `stay_s` is how long a model is served on then, `bound_s` how long after that its requests may go on coming.
    """

    direct: bool = False
    stay_s: float = 0.0
    bound_s: float = 30.0


class Departure:
    """The way out of one worker."""

    def __init__(
        self, server: runtime.Runtime, worker: values.Endpoint, used: usage.Usage, manner: Manner, shown: access.Access
    ) -> None:
        self.closed = asyncio.Event()
        self._server = server
        self._worker = worker
        self._usage = used
        self._manner = manner
        self._headers = shown.control_headers()

    async def tell(self, model: str = "") -> None:
        """Tells the clients of a model, or all, to go with their next answer, where the worker can do that."""
        which = f"models/{urllib.parse.quote(model, safe='')}/" if model else ""
        worker = self._worker
        path = f"/v2/repository/{which}leave"
        call = http_call.Call(worker.host, worker.http_port, path, "POST", self._headers)
        try:
            async with asyncio.timeout(_TELL_S):
                status, body = await http_call.perform(call)
        except http_call.FAILURES as error:
            log.info("leave.untold", model=model, error=repr(error))
        else:
            _note(model, status, body)

    async def unload(self, name: str, addresses: endpoints.Endpoints) -> None:
        """Returns once the worker does not hold the model any more."""
        await addresses.drained(name)
        if self._manner.direct:
            await self.tell(name)
            await self._stand_idle(name)
        await self._until(lambda: self._begin(name))
        await self._until(lambda: self._is_gone(name))

    async def _stand_idle(self, name: str) -> None:
        """Returns once nobody has used the model for a moment, or the bound is over."""
        now_s = asyncio.get_running_loop().time
        least_s = now_s() + self._manner.stay_s
        most_s = least_s + self._manner.bound_s
        idle_since_s, ended = now_s(), -1
        while now_s() < most_s and not await backoff.wait(self.closed, _LOOK_S):
            reading = await self._usage.read(clock.now_ms())
            found = reading.statistics.models.get(name) if reading.statistics else None
            if found is None:
                return
            if reading.page.in_flight.get(name, 0) or found.request_count != ended:
                idle_since_s, ended = now_s(), found.request_count
            elif now_s() >= least_s and now_s() - idle_since_s >= _QUIET_S:
                return

    async def _begin(self, name: str) -> bool:
        await self._server.unload(name)
        return True

    async def _is_gone(self, name: str) -> bool:
        index = await self._server.index()
        return name not in index.loaded | index.busy

    async def _until(self, step: Callable[[], Awaitable[bool]]) -> None:
        """Repeats a step until it is done; a server that does not answer is asked again."""
        delays = backoff.Backoff(0.05, 1.0)
        while True:
            try:
                if await step():
                    return
            except errors.ServerGone as error:
                log.debug("server.silent", error=str(error))
            await backoff.wait(self.closed, delays.next_s())


def _note(model: str, status: int, body: bytes) -> None:
    said = body[:_MOST_SAID].decode("utf-8", "replace")
    if remedy := access.remedy(said):
        log.warning("leave.restricted", model=model, error=said, remedy=remedy)
    else:
        log.debug("leave.told", model=model, status=status)
