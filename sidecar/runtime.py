"""Drives the worker's server through the V2 protocol and its repository extension, over gRPC.

Decides what an answer means: gone, refused for good, or worth another try. Works with any server that has the
extension. Readiness is `ServerLive` with an index that answers, not `ServerReady`: servers with strict readiness answer
"not ready" for as long as any one model failed. Must never wait without a bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Mapping
from typing import TypeVar

import grpc

from protos.inference.v2 import predict_pb2, predict_pb2_grpc
from sidecar import access, activity, errors

_Message = TypeVar("_Message")

_CALL_S = 5.0
_LOAD_S = 900.0
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # A worker that comes back must be seen soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
# Servers in another control mode answer with the same code as one that is shutting down.
_NEVER = "explicit model load / unload is not allowed"


@dataclasses.dataclass(frozen=True, slots=True)
class Index:
    """Names of the models that serve, and of those on their way in or out."""

    loaded: frozenset[str]
    busy: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """The server's counters by model name, and the bytes it says its models hold."""

    models: Mapping[str, activity.Counters]
    memory_bytes: int


class Runtime:
    """One server. Calls raise ServerGone where it does not answer; `load` also ModelFailed."""

    def __init__(self, target: str, shown: access.Access = access.NOTHING) -> None:
        self._metadata, self._control = shown.metadata(), shown.control_metadata()
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._stub = predict_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def index(self, bound_s: float = _CALL_S) -> Index:
        """What the server holds; also the probe whether it is up. Each of its two calls takes `bound_s` at most."""
        probe = predict_pb2.ServerLiveRequest()
        live = await _answer(self._stub.ServerLive(probe, timeout=bound_s, metadata=self._metadata))
        if not live.live:
            raise errors.ServerGone("the server answers that it is not live")
        asked = predict_pb2.RepositoryIndexRequest()
        answer = await _answer(self._stub.RepositoryIndex(asked, timeout=bound_s, metadata=self._control))
        loaded = frozenset(entry.name for entry in answer.models if entry.state == "READY")
        busy = frozenset(entry.name for entry in answer.models if entry.state in {"LOADING", "UNLOADING"})
        return Index(loaded, busy)

    async def load(self, name: str, config: str) -> None:
        """Returns once the model serves. `config`: JSON of a ModelConfig that replaces the model's own, or empty."""
        request = predict_pb2.RepositoryModelLoadRequest(model_name=name)
        if config:
            request.parameters["config"].string_param = config
        try:
            await self._stub.RepositoryModelLoad(request, timeout=_LOAD_S, metadata=self._control)
        except grpc.aio.AioRpcError as error:
            raise _load_failure(error) from error

    async def unload(self, name: str) -> None:
        """Returns once the unload has begun."""
        request = predict_pb2.RepositoryModelUnloadRequest(model_name=name)
        await _answer(self._stub.RepositoryModelUnload(request, timeout=_LOAD_S, metadata=self._control))

    async def statistics(self) -> Statistics:
        """Counters of all models that the server holds."""
        asked = predict_pb2.ModelStatisticsRequest()
        answer = await _answer(self._stub.ModelStatistics(asked, timeout=_CALL_S, metadata=self._metadata))
        models: dict[str, activity.Counters] = {}
        for each in answer.model_stats:
            models[each.name] = models.get(each.name, activity.Counters()) + _counters(each)
        return Statistics(models, _memory(answer))


async def _answer(call: Awaitable[_Message]) -> _Message:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if restricted := _restricted(error):
            raise restricted from error
        refused = error.code() is grpc.StatusCode.UNAVAILABLE
        raise errors.ServerGone(f"{error.code().name}: {error.details()}", refused=refused) from error


def _restricted(error: grpc.aio.AioRpcError) -> errors.Restricted | None:
    said = error.details() or ""
    remedy = access.remedy(said)
    return errors.Restricted(f"{said}: {remedy}") if remedy else None


def _load_failure(error: grpc.aio.AioRpcError) -> errors.ModelFailed:
    said = error.details() or error.code().name
    if restricted := _restricted(error):
        return errors.ModelFailed(restricted.failure.reason, restricted.failure.message)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.ModelFailed("LoadTimeout", f"the load took longer than {_LOAD_S:.0f} s", retryable=True)
    if error.code() in _GONE and _NEVER not in said:
        return errors.ModelFailed("ServerGone", f"the server did not finish the load: {said}", retryable=True)
    return errors.ModelFailed("LoadFailed", said)


def _counters(stats: predict_pb2.ModelStatistics) -> activity.Counters:
    said = stats.inference_stats
    return activity.Counters(
        inference_count=stats.inference_count,
        request_count=said.success.count + said.fail.count,
        failure_count=said.fail.count,
        last_inference_ms=stats.last_inference,
        queue_ns=said.queue.ns,
        compute_ns=said.compute_input.ns + said.compute_infer.ns + said.compute_output.ns,
    )


def _memory(answer: predict_pb2.ModelStatisticsResponse) -> int:
    """Device bytes where the models hold any, else main memory."""
    usages = [usage for stats in answer.model_stats for usage in stats.memory_usage]
    device = sum(usage.byte_size for usage in usages if usage.type == "GPU")
    return device or sum(usage.byte_size for usage in usages)
