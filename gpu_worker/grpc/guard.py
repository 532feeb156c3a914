"""Which group of calls each method belongs to, and the guard before it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import message as protobuf

from gpu_worker.grpc import calls
from gpu_worker.wire import restriction as wire_restriction

APIS = {
    **dict.fromkeys(("ServerLive", "ServerReady", "ModelReady", "Check", "Watch"), "health"),
    **dict.fromkeys(("ServerMetadata", "ModelMetadata"), "metadata"),
    **dict.fromkeys(("ModelInfer", "ModelStreamInfer"), "inference"),
    "ModelConfig": "model-config",
    "ModelStatistics": "statistics",
    **dict.fromkeys(("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"), "model-repository"),
    **{
        f"{kind}SharedMemory{name}": "shared-memory"
        for kind in ("System", "Cuda")
        for name in ("Status", "Register", "Unregister")
    },
    "TraceSetting": "trace",
    "LogSettings": "logging",
}
"""By the method's name."""


def check(restriction: wire_restriction.Restriction, api: str, call: calls.Call) -> None:
    """Raises InferenceError where the call does not show what its group asks for."""
    restriction.check(api, lambda name: calls.value(call, name))


def guarded(table: calls.Table, restriction: wire_restriction.Restriction) -> dict[str, calls.Method]:
    """The methods, each behind the guard of its group."""
    return {path: _guarded(APIS[path.rpartition("/")[2]], method, restriction) for path, method in table.items()}


def _guarded(api: str, method: calls.Method, restriction: wire_restriction.Restriction) -> calls.Method:
    if isinstance(method, calls.Unary):
        answer = method.handle

        async def unary(request: Any, call: calls.Call) -> protobuf.Message:
            check(restriction, api, call)
            return await answer(request, call)

        return calls.Unary(method.request, unary)
    stream = method.handle

    async def streaming(requests: AsyncIterator[Any], call: calls.Call) -> None:
        check(restriction, api, call)
        await stream(requests, call)

    return calls.Streaming(method.request, streaming)
