"""The metrics API as a whole: opened once, kept by a pass, closed at the end.

Joins certificates, trust, registration and the listener; whoever composes the server needs nothing else from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
from typing import NoReturn

import prometheus_client
import structlog

from tms_server import clock as clock_module
from tms_server.metrics_api import certificates, kube, registration, rights, server, trust
from tms_server.metrics_api import source as source_module
from tms_server.model import errors

log = structlog.get_logger(__name__)
MISSING_RECHECK = dt.timedelta(minutes=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where it listens and who leads to it. `own_ca` is False where somebody else keeps the CA in the APIService."""

    at: server.Address
    service: registration.Service
    installation: str
    register: bool = True
    own_ca: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What it works with."""

    api: kube.Kube
    source: source_module.Source
    clock: clock_module.Clock
    registry: prometheus_client.CollectorRegistry


class MetricsApi:
    """`open` first; then `keep` as a pass; `close` last. It follows by itself whom to believe."""

    def __init__(self, parts: Parts, options: Options, shown: certificates.Shown) -> None:
        self._parts = parts
        self._options = options
        self._shown = shown
        self._server = server.Server(parts.source, rights.Rights(parts.api), shown)
        self._follower = trust.Follower(parts.api, parts.clock, self._server.trust)
        self._registration = registration.Registration(parts.api, options.service, options.installation)
        self._holder = prometheus_client.Gauge(
            "tms_metrics_api_holder",
            "Whose external.metrics.k8s.io is in this cluster: 1 for the one that holds.",
            ["holder"],
            registry=parts.registry,
        )
        self._following: asyncio.Task[NoReturn] | None = None
        self.port = 0

    @property
    def state(self) -> registration.State:
        """Whose the API group is, as last seen; TMS must scale by itself unless it is ours."""
        return self._registration.state

    @property
    def scales_itself(self) -> bool:
        """No HorizontalPodAutoscaler can read our metrics: the group is somebody else's, or nobody's."""
        return self.state.holder in (registration.Holder.OTHER, registration.Holder.NOBODY)

    async def open(self) -> None:
        """Listens and registers; what the API server does not answer yet is asked for again later.

        FailedPrecondition when the address cannot be had.
        """
        self.port = await self._server.start(self._options.at)
        with contextlib.suppress(errors.Retryable, errors.PermissionDenied, errors.FailedPrecondition):
            await self._follower.read()
        self._following = asyncio.create_task(self._follower.run(), name="metrics_api.trust")
        with contextlib.suppress(errors.Retryable):
            await self.keep()

    async def keep(self) -> dt.datetime:
        """One pass: looks after the APIService; answers when to look again."""
        options = self._options
        state = await self._registration.keep(self._shown.ca, manage=options.register, own_ca=options.own_ca)
        for holder in registration.Holder:
            self._holder.labels(holder).set(holder is state.holder)
        missing = state.holder in (registration.Holder.UNKNOWN, registration.Holder.NOBODY)
        pause = MISSING_RECHECK if missing and options.register else certificates.RECHECK
        return self._parts.clock.now() + pause

    def show(self, shown: certificates.Shown) -> None:
        """Another certificate from now on; wake the pass, so that its authority is published."""
        self._shown = shown
        self._server.show(shown)

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        await self._server.stop()
