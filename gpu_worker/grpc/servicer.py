"""inference.GRPCInferenceService over the engine.

Decides nothing but form. Must never leave a request with the engine that its client has given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc

from gpu_worker.engine import border
from gpu_worker.grpc import codec, status, stream, views
from gpu_worker.wire import control as wire_control
from gpu_worker.wire import datatypes, parameters
from gpu_worker.wire import intake as wire_intake
from protos.inference.v2 import predict_pb2


def _unserved(extension: str) -> Callable[[Any, Any, status.Context], Any]:
    """A method of an extension that this server does not have."""

    async def method(_self: Any, _request: Any, context: status.Context) -> NoReturn:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"This server does not support the {extension} extension")
        raise AssertionError("abort raises")

    return method


class Servicer:
    """The service; shaped as the generated servicer, with asyncio's contexts only."""

    def __init__(
        self,
        engine: border.Engine,
        intake: wire_intake.Intake,
        compression: grpc.Compression,
        control: wire_control.Control,
    ) -> None:
        self._engine = engine
        self._control = control
        self._intake = intake
        self._compression = compression

    @status.told
    async def ModelInfer(  # noqa: N802 - the wire's name, as all below
        self, request: predict_pb2.ModelInferRequest, context: status.Context
    ) -> predict_pb2.ModelInferResponse:
        if self._compression is not grpc.Compression.NoCompression:
            context.set_compression(self._compression)
        reply = _Unary(self._intake)
        inference = codec.decode(request, reply)
        inference.deadline_s = status.deadline_s(context)
        size_bytes = sum(len(tensor.data) for tensor in inference.inputs)
        if not self._intake.hold(size_bytes):
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, wire_intake.FULL)
        try:
            self._intake.submit(inference)
            return codec.encode(await reply.answer)
        finally:
            inference.cancelled = True
            self._intake.let_go(size_bytes)
            # Else an error on its way out would hold itself through them, and the request with it.
            del inference, reply

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[predict_pb2.ModelInferRequest], context: status.Context
    ) -> None:
        if self._compression is not grpc.Compression.NoCompression:
            context.set_compression(self._compression)
        await stream.Stream(self._intake, request_iterator, context).run()

    @status.told
    async def ServerLive(  # noqa: N802
        self, _request: predict_pb2.ServerLiveRequest, _context: status.Context
    ) -> predict_pb2.ServerLiveResponse:
        return predict_pb2.ServerLiveResponse(live=self._engine.live())

    @status.told
    async def ServerReady(  # noqa: N802
        self, _request: predict_pb2.ServerReadyRequest, _context: status.Context
    ) -> predict_pb2.ServerReadyResponse:
        return predict_pb2.ServerReadyResponse(ready=self._engine.ready())

    @status.told
    async def ModelReady(  # noqa: N802
        self, request: predict_pb2.ModelReadyRequest, _context: status.Context
    ) -> predict_pb2.ModelReadyResponse:
        version = parameters.check_version(request.version)
        return predict_pb2.ModelReadyResponse(ready=self._engine.model_ready(request.name, version))

    @status.told
    async def ServerMetadata(  # noqa: N802
        self, _request: predict_pb2.ServerMetadataRequest, _context: status.Context
    ) -> predict_pb2.ServerMetadataResponse:
        metadata = self._engine.server_metadata()
        return predict_pb2.ServerMetadataResponse(
            name=metadata.name, version=metadata.version, extensions=metadata.extensions
        )

    @status.told
    async def ModelMetadata(  # noqa: N802
        self, request: predict_pb2.ModelMetadataRequest, _context: status.Context
    ) -> predict_pb2.ModelMetadataResponse:
        version = parameters.check_version(request.version)
        return views.model(self._engine.model_metadata(request.name, version))

    @status.told
    async def ModelConfig(  # noqa: N802
        self, request: predict_pb2.ModelConfigRequest, _context: status.Context
    ) -> predict_pb2.ModelConfigResponse:
        version = parameters.check_version(request.version)
        return predict_pb2.ModelConfigResponse(config=self._engine.model_config(request.name, version))

    @status.told
    async def ModelStatistics(  # noqa: N802
        self, request: predict_pb2.ModelStatisticsRequest, _context: status.Context
    ) -> predict_pb2.ModelStatisticsResponse:
        version = parameters.check_version(request.version)
        found = self._engine.statistics(request.name, version)
        return predict_pb2.ModelStatisticsResponse(model_stats=map(views.statistics, found))

    @status.told
    async def RepositoryIndex(  # noqa: N802
        self, request: predict_pb2.RepositoryIndexRequest, context: status.Context
    ) -> predict_pb2.RepositoryIndexResponse:
        self._control.check(_shown(context))
        _check_repository(request.repository_name)
        return views.index(self._engine.index(ready=request.ready))

    @status.told
    async def RepositoryModelLoad(  # noqa: N802
        self, request: predict_pb2.RepositoryModelLoadRequest, context: status.Context
    ) -> predict_pb2.RepositoryModelLoadResponse:
        self._control.check(_shown(context))
        _check_repository(request.repository_name)
        given = {name: _repository_parameter(name, value) for name, value in request.parameters.items()}
        await self._engine.load(request.model_name, given)
        return predict_pb2.RepositoryModelLoadResponse()

    @status.told
    async def RepositoryModelUnload(  # noqa: N802
        self, request: predict_pb2.RepositoryModelUnloadRequest, context: status.Context
    ) -> predict_pb2.RepositoryModelUnloadResponse:
        self._control.check(_shown(context))
        _check_repository(request.repository_name)
        given = {name: _repository_parameter(name, value) for name, value in request.parameters.items()}
        dependents = parameters.unload_dependents(given)
        await self._engine.unload(request.model_name, unload_dependents=dependents)
        return predict_pb2.RepositoryModelUnloadResponse()

    SystemSharedMemoryStatus = _unserved("system_shared_memory")
    SystemSharedMemoryRegister = _unserved("system_shared_memory")
    SystemSharedMemoryUnregister = _unserved("system_shared_memory")
    CudaSharedMemoryStatus = _unserved("cuda_shared_memory")
    CudaSharedMemoryRegister = _unserved("cuda_shared_memory")
    CudaSharedMemoryUnregister = _unserved("cuda_shared_memory")
    TraceSetting = _unserved("trace")
    LogSettings = _unserved("logging")


class _Unary:
    """Takes the one answer of a call."""

    __slots__ = ("_intake", "answer")

    def __init__(self, intake: wire_intake.Intake) -> None:
        self._intake = intake
        self.answer: asyncio.Future[border.InferResponse] = asyncio.get_running_loop().create_future()

    def __call__(self, answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
        if final:
            self._intake.finished()
        if self.answer.done():
            return
        if isinstance(answer, border.InferenceError):
            self.answer.set_exception(answer)
        elif final:
            self.answer.set_result(answer)
        else:
            message = (
                f"ModelInfer RPC doesn't support models with decoupled transaction policy, as '{answer.model_name}'"
            )
            self.answer.set_exception(border.InferenceError(border.ErrorKind.UNSUPPORTED, message))


def _shown(context: status.Context) -> bytes:
    metadata = context.invocation_metadata() or ()
    value = next((value for key, value in metadata if key == wire_control.HEADER), b"")
    return value.encode() if isinstance(value, str) else value


def _check_repository(name: str) -> None:
    if name:
        raise border.InferenceError(
            border.ErrorKind.UNSUPPORTED, f"repository_name '{name}' is given, but naming a repository is not supported"
        )


def _repository_parameter(name: str, value: predict_pb2.ModelRepositoryParameter) -> border.Parameter | bytes:
    choice = value.WhichOneof("parameter_choice")
    if choice is None:
        raise datatypes.refused(f"parameter '{name}' has an invalid type: no value is set")
    found: border.Parameter | bytes = getattr(value, choice)
    return found
