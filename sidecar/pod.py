"""What a pod's probes and hooks are answered.

Decides, from what the agent knows: `/livez` whether this process works, `/startedz` whether the worker has answered yet,
`/readyz` whether clients may be sent here, `/workerlivez` whether the worker's container should go on, `/drain` when it
may be stopped. Must never wait without a bound, nor answer ready while the pod is on its way out.

Probes come once a second at most. Those that wait for something to begin may say ``patience_s``: a no that could still
become a yes is held back for so long, so that a pod is ready when it is, and not up to a second later. What has begun and
fails is told at once.
"""

from __future__ import annotations

import asyncio
import math
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import structlog

from sidecar import backoff, probes, readiness, usage, wedge

log = structlog.get_logger()

_QUIET_S = 1.0
_LOOK_S = 0.1
_PATIENT_LOOK_S = 0.03
_BEGINNING = frozenset({"WorkerUnavailable", "ModelsNotLoaded", "NotRouted", "NotStarted"})
_MOST_PATIENCE_S, _MOST_DRAIN_S = 60.0, 86400.0
# A pod that is still here so long after its drain was not to go after all.
_FORGOTTEN_S = 600.0


class Keeper(Protocol):
    """The agent, as probes see it."""

    @property
    def server_restarts(self) -> int: ...

    @property
    def server_seen(self) -> bool: ...

    def stalled(self) -> bool: ...

    def trouble(self) -> wedge.Trouble | None: ...

    async def readiness(self) -> readiness.Verdict: ...

    async def look(self) -> usage.Reading:
        """What the worker says now; statistics None where it does not answer."""
        ...

    async def leave(self) -> None:
        """Tells the worker's clients to go elsewhere, as far as the worker can."""
        ...


class Pod:
    """The answers of one sidecar."""

    def __init__(self, keeper: Keeper, drain_s: float, stop: asyncio.Event) -> None:
        """`drain_s` bounds a drain that gives no bound; `stop` ends those that wait."""
        self._keeper = keeper
        self._drain_s = drain_s
        self._stop = stop
        self._drained_life: int | None = None
        self._drained_until_s = 0.0
        self._ready_life: int | None = None
        self._paths: Mapping[str, Callable[[str], Awaitable[probes.Answer]]] = {
            "/livez": self._livez,
            "/startedz": self._startedz,
            "/readyz": self._readyz,
            "/workerlivez": self._workerlivez,
            "/drain": self._drain,
        }

    async def answer(self, path: str, query: str) -> probes.Answer:
        """The answer to a probe; see the module."""
        answer = self._paths.get(path)
        if answer is None:
            return probes.Answer(404, {"error": f"no such path; known are {', '.join(self._paths)}"})
        return await answer(query)

    async def _livez(self, _query: str) -> probes.Answer:
        return _answer("Stalled" if self._keeper.stalled() else "", "the sidecar's work has ceased")

    async def _workerlivez(self, _query: str) -> probes.Answer:
        trouble = self._keeper.trouble()
        return _answer(trouble.reason, trouble.message) if trouble else _answer("", "")

    async def _startedz(self, query: str) -> probes.Answer:
        return await self._patiently(query, self._started)

    async def _readyz(self, query: str) -> probes.Answer:
        return await self._patiently(query, self._ready)

    async def _started(self) -> readiness.Verdict:
        if self._keeper.server_seen:
            return readiness.Verdict()
        return readiness.Verdict("NotStarted", "the worker has not answered yet")

    async def _ready(self) -> readiness.Verdict:
        if self._draining():
            return readiness.Verdict("Draining", "the pod is on its way out")
        verdict = await self._keeper.readiness()
        if verdict.ready:
            self._ready_life = self._keeper.server_restarts
        return verdict

    async def _patiently(self, query: str, ask: Callable[[], Awaitable[readiness.Verdict]]) -> probes.Answer:
        patience_s = _seconds(query, "patience_s", 0.0, _MOST_PATIENCE_S)
        if patience_s is None:
            return _wrong("patience_s", _MOST_PATIENCE_S)
        until_s = _now_s() + patience_s
        while (verdict := await ask()).reason in _BEGINNING and self._ready_life != self._keeper.server_restarts:
            if _now_s() >= until_s or await backoff.wait(self._stop, _PATIENT_LOOK_S):
                break
        return _answer(verdict.reason, verdict.message)

    async def _drain(self, query: str) -> probes.Answer:
        timeout_s = _seconds(query, "timeout_s", self._drain_s, _MOST_DRAIN_S)
        if timeout_s is None:
            return _wrong("timeout_s", _MOST_DRAIN_S)
        self._drained_life = self._keeper.server_restarts
        self._drained_until_s = _now_s() + timeout_s + _FORGOTTEN_S
        log.info("drain.begun", timeout_s=timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._keeper.leave()
                outcome = await self._settled()
        except TimeoutError:
            outcome = "TimedOut"
        log.info("drain.ended", outcome=outcome)
        return probes.Answer(200, {"outcome": outcome})

    async def _settled(self) -> str:
        """Returns once the worker has stood idle for a moment, or there is nothing to wait for."""
        idle_since_s, ended = math.inf, -1
        while not self._keeper.trouble():
            reading = await self._keeper.look()
            if reading.statistics is None:
                return "WorkerGone"
            if reading.in_flight or reading.ended != ended:
                idle_since_s, ended = _now_s(), reading.ended
            elif _now_s() - idle_since_s >= _QUIET_S:
                return "Idle"
            if await backoff.wait(self._stop, _LOOK_S):
                return "Stopping"
        return "WorkerInTrouble"

    def _draining(self) -> bool:
        return self._drained_life == self._keeper.server_restarts and _now_s() < self._drained_until_s


def _answer(reason: str, message: str) -> probes.Answer:
    """200 without a reason, else 503."""
    return probes.Answer(503, {"reason": reason, "message": message}) if reason else probes.Answer(200, {"reason": ""})


def _wrong(parameter: str, most_s: float) -> probes.Answer:
    return probes.Answer(400, {"error": f"{parameter} must be a number of seconds from 0 to {most_s:.0f}"})


def _seconds(query: str, parameter: str, default_s: float, most_s: float) -> float | None:
    """The bound that a query gives; None for one that is no bound."""
    given = urllib.parse.parse_qs(query, keep_blank_values=True).get(parameter)
    if given is None:
        return default_s
    try:
        bound_s = float(given[-1])
    except ValueError:
        return None
    return bound_s if 0 <= bound_s <= most_s else None


def _now_s() -> float:
    return asyncio.get_running_loop().time()
