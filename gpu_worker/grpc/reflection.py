"""grpc.reflection, v1 and v1alpha: which services and messages there are, for tools that ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from gpu_worker.grpc import calls

NAME = reflection.SERVICE_NAME
# The same messages under another name.
_NAME_V1 = "grpc.reflection.v1.ServerReflection"


class Reflection:
    """The reflection service over the names of all services."""

    def __init__(self, services: Iterable[str]) -> None:
        # Its stubs take the asynchronous generator for a coroutine.
        self._answers: Any = reflection.aio.ReflectionServicer([*services, NAME, _NAME_V1])

    def table(self) -> dict[str, calls.Method]:
        """Its methods by path."""
        streaming = calls.Streaming(reflection_pb2.ServerReflectionRequest, self._info)
        return {f"/{name}/ServerReflectionInfo": streaming for name in (NAME, _NAME_V1)}

    async def _info(self, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], call: calls.Call) -> None:
        async for answer in self._answers.ServerReflectionInfo(requests, None):
            await call.write(answer)
