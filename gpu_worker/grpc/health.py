"""grpc.health.v1 over the engine's readiness. Decides nothing: it asks the engine each time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2

from gpu_worker.engine import border
from gpu_worker.grpc import calls, service

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_SERVICES = ("", service.NAME)
_LOOK_S = 1.0
_Status = health_pb2.HealthCheckResponse


class Health:
    """The health service; `stop` ends its watches."""

    def __init__(self, engine: border.Engine) -> None:
        self._engine = engine
        self._stopped = asyncio.Event()

    def table(self) -> dict[str, calls.Method]:
        """Its methods by path."""
        return {
            f"/{NAME}/Check": calls.Unary(health_pb2.HealthCheckRequest, self._check),
            f"/{NAME}/Watch": calls.Streaming(health_pb2.HealthCheckRequest, self._watch),
        }

    def stop(self) -> None:
        """From now on all is told as not serving, and watches end after saying so."""
        self._stopped.set()

    async def _check(self, request: health_pb2.HealthCheckRequest, _call: calls.Call) -> health_pb2.HealthCheckResponse:
        if request.service not in _SERVICES:
            raise border.InferenceError(border.ErrorKind.NOT_FOUND, f"unknown service '{request.service}'")
        return await self._response(request.service)

    async def _watch(self, requests: AsyncIterator[health_pb2.HealthCheckRequest], call: calls.Call) -> None:
        request = await anext(requests, None)
        if request is None:
            raise border.InferenceError(
                border.ErrorKind.INVALID_ARGUMENT, "the request has no message, one is expected"
            )
        told = None
        while True:
            response = await self._response(request.service)
            if response != told:
                await call.write(response)
                told = response
            if self._stopped.is_set():
                return
            await self._look_again()

    async def _look_again(self) -> None:
        # The engine tells nobody when readiness changes, so this looks once a second.
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._stopped.wait()
        except TimeoutError:
            return

    async def _response(self, name: str) -> health_pb2.HealthCheckResponse:
        if name not in _SERVICES:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        serving = not self._stopped.is_set() and await self._engine.ready()
        return _Status(status=_Status.SERVING if serving else _Status.NOT_SERVING)
