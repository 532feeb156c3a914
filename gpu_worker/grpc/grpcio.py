"""The gRPC front on gRPC's own core: its channel options, its contexts, TLS, drain.

Decides how the services' methods are carried, never what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf import message as protobuf

from gpu_worker.engine import border
from gpu_worker.grpc import calls, codec, guard, health, listen, reflection, service, status
from gpu_worker.wire import intake as wire_intake
from gpu_worker.wire import rules as wire_rules
from protos.inference.v2 import predict_pb2

_UNLIMITED = -1
_QUIET_S = 0.25
_FAR_S = 1e8
_UNDECODABLE = border.ErrorKind.INTERNAL, "Exception deserializing request!"
# gRPC's core adds up to a tenth to each connection's age.
_AGE_SPREAD = 1.2

_Message = TypeVar("_Message", bound=protobuf.Message)
_Context = grpc.aio.ServicerContext[Any, Any]


class Server:
    """Made, started, drained and closed on one event loop."""

    def __init__(
        self,
        engine: border.Engine,
        intake: wire_intake.Intake,
        where: listen.Listen,
        rules: wire_rules.Rules = wire_rules.OPEN,
    ) -> None:
        self._listen = where
        self._intake = intake
        self._health = health.Health(engine)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _UNLIMITED),
                ("grpc.max_send_message_length", _UNLIMITED),
                # Beyond 1000 calls that came at once gRPC's core would cancel some: the intake refuses with words.
                ("grpc.server.max_pending_requests", wire_intake.Bounds().requests),
                ("grpc.server.max_pending_requests_hard_limit", wire_intake.Bounds().requests),
                ("grpc.so_reuseport", int(where.reuse_port)),
                *where.arguments,
            ]
        )
        inference = service.Service(engine, intake, rules)
        named = reflection.Reflection([service.NAME, health.NAME])
        table = {**inference.table(), **guard.guarded(self._health.table(), rules.restriction), **named.table()}
        handlers = {path: _handler(path, method, where.compression) for path, method in table.items()}
        handlers[service.INFER] = _infer_handler(inference, where.compression)
        self._server.add_generic_rpc_handlers((_Handlers(handlers),))

    async def start(self) -> int:
        """Listens; returns the bound port. OSError when the address or the TLS files cannot be had."""
        target = f"{_bracketed(self._listen.address)}:{self._listen.port}"
        try:
            if self._listen.tls:
                port = self._server.add_secure_port(target, self._listen.tls.credentials())
            else:
                port = self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise OSError(f"cannot listen for gRPC on {target}: {error}") from error
        await self._server.start()
        return port

    async def stop(self, grace_s: float) -> None:
        """Stops accepting, tells clients to go, and gives calls in flight `grace_s` to finish.

        Calls that arrive in the very moment of stopping are lost. So where connections have an age, it is awaited
        first, for as long as inferences come: their clients go elsewhere unharmed.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + grace_s
        self._health.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(grace_s, self._listen.age_s * _AGE_SPREAD)):
                await self._intake.quiet(_QUIET_S)
        await self._server.stop(max(0.0, until_s - loop.time()))


class _Handlers(grpc.GenericRpcHandler):
    """The table as gRPC's core asks for it."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)


class _Call:
    """calls.Call over a context of grpc.aio."""

    __slots__ = ("_context",)

    def __init__(self, context: _Context) -> None:
        self._context = context

    @property
    def deadline_s(self) -> float | None:
        remaining_s = self._context.time_remaining()
        # The stubs know no call without a deadline; the runtime gives None.
        if not remaining_s or remaining_s > _FAR_S:
            return None
        return asyncio.get_running_loop().time() + remaining_s

    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return self._context.invocation_metadata() or ()

    async def write(self, message: protobuf.Message) -> None:
        await self._context.write(message)


def _handler(path: str, method: calls.Method, compression: grpc.Compression) -> Any:
    if isinstance(method, calls.Streaming):
        assert method.request is not None
        return grpc.stream_stream_rpc_method_handler(
            _streaming(path, method, compression),
            request_deserializer=method.request.FromString,
            response_serializer=_serialize,
        )
    return grpc.unary_unary_rpc_method_handler(_unary(path, method), response_serializer=_serialize)


def _unary(path: str, method: calls.Unary) -> Any:
    async def run(data: bytes, context: _Context) -> Any:
        try:
            return await method.handle(_decoded(method.request, data), _Call(context))
        except Exception as error:  # noqa: BLE001 - every failure is told
            await _abort(context, error, path)

    return run


def _streaming(path: str, method: calls.Streaming, compression: grpc.Compression) -> Any:
    async def run(requests: AsyncIterator[Any], context: _Context) -> None:
        _compress(context, compression)
        try:
            await method.handle(requests, _Call(context))
        except Exception as error:  # noqa: BLE001 - every failure is told
            await _abort(context, error, path)

    return run


def _infer_handler(inference: service.Service, compression: grpc.Compression) -> Any:
    async def run(data: bytes, context: _Context) -> Any:
        _compress(context, compression)
        try:
            request = _decoded(predict_pb2.ModelInferRequest, data)
            del data  # held once, as long as the request
            answer = await _infer(inference, request, _Call(context))
        except Exception as error:  # noqa: BLE001 - every failure is told
            await _abort(context, error, service.INFER)
        else:
            # Not raised: with its own frames it would hold itself, and the request with it.
            if isinstance(answer, border.InferenceError):
                await _abort(context, answer, service.INFER)
            if compression is not grpc.Compression.NoCompression:
                # Else grpc.aio sends the headers of a unary call without its compression, and the answer unpacked.
                await context.send_initial_metadata(())
            return answer

    return grpc.unary_unary_rpc_method_handler(run, response_serializer=_serialize)


def _decoded(kind: type[_Message], data: bytes) -> _Message:
    """The message; gRPC's core would tell a client that it is none in words about Python."""
    try:
        return kind.FromString(data)
    except protobuf.DecodeError:
        raise border.InferenceError(*_UNDECODABLE) from None


async def _infer(
    inference: service.Service, request: predict_pb2.ModelInferRequest, call: calls.Call
) -> predict_pb2.ModelInferResponse | border.InferenceError:
    answered: asyncio.Future[service.Answer] = asyncio.get_running_loop().create_future()

    def done(answer: service.Answer) -> None:
        if not answered.done():
            answered.set_result(answer)

    running = inference.infer(request, request.raw_input_contents, call, done)
    try:
        answer = await answered
    finally:
        running.close()
    return answer if isinstance(answer, border.InferenceError) else codec.encode(answer)


async def _abort(context: _Context, error: Exception, path: str) -> None:
    """Ends the call with the status of `error`; never returns normally."""
    if isinstance(error, (grpc.aio.AbortError, grpc.aio.BaseError)):
        raise error
    code, details = status.of(error, path)
    if context.time_remaining() == 0:
        # The engine may notice first, and says in words of its own that it gave up.
        code, details = grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"
    await context.abort(code, details)


def _compress(context: _Context, compression: grpc.Compression) -> None:
    if compression is not grpc.Compression.NoCompression:
        context.set_compression(compression)


def _serialize(message: protobuf.Message) -> bytes:
    return message.SerializeToString()


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
