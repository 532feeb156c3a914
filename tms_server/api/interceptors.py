"""Around every call: request id, caller in the log, metrics, and errors turned into codes.

An unforeseen exception becomes INTERNAL and tells the caller nothing but the request id; the log has the rest.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog

from tms_server.api import callers
from tms_server.api import errors as table
from tms_server.model import errors
from tms_server.observability import metrics as metrics_module

log = structlog.get_logger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")
REQUEST_ID = "x-request-id"


class Around(grpc.aio.ServerInterceptor):
    """Wraps each handler, whatever its kind."""

    def __init__(self, metrics: metrics_module.Metrics) -> None:
        self._metrics = metrics
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        # Only methods that are registered have a handler, so callers cannot make this grow.
        inner, wrapped = self._wrapped.get(method, (None, None))
        if inner is not handler:
            wrapped = self._wrap(method, handler)
            self._wrapped[method] = handler, wrapped
        return wrapped  # type: ignore[no-any-return]

    def _wrap(self, method: str, handler: Any) -> Any:
        for kind in ("unary_unary", "stream_unary"):
            if (inner := getattr(handler, kind)) is not None:
                return handler._replace(**{kind: self._answering(method, inner)})
        for kind in ("unary_stream", "stream_stream"):
            if inspect.isasyncgenfunction(inner := getattr(handler, kind)):
                return handler._replace(**{kind: self._streaming(method, inner)})
        return handler

    def _answering(self, method: str, inner: Callable[[Any, Context], Awaitable[T]]) -> Callable[[Any, Context], Any]:
        async def answer(request: Any, context: Context) -> T:
            call = _Call(method, context, self._metrics)
            started = time.monotonic()
            try:
                answered = await inner(request, context)
            except Exception as error:
                await call.fail(error)
                raise AssertionError("abort raises") from error
            call.end(grpc.StatusCode.OK)
            self._metrics.rpc_seconds.labels(method).observe(time.monotonic() - started)
            return answered

        return answer

    def _streaming(
        self, method: str, inner: Callable[[Any, Context], AsyncIterator[T]]
    ) -> Callable[[Any, Context], AsyncIterator[T]]:
        async def stream(request: Any, context: Context) -> AsyncIterator[T]:
            call = _Call(method, context, self._metrics)
            with self._metrics.streams.labels(method).track_inprogress():
                try:
                    async for message in inner(request, context):
                        yield message
                except (asyncio.CancelledError, GeneratorExit):
                    call.end(grpc.StatusCode.CANCELLED)
                    raise
                except Exception as error:  # noqa: BLE001 - every failure becomes a code
                    await call.fail(error)
                call.end(grpc.StatusCode.OK)

        return stream


class _Call:
    """One call: what is logged and counted of it."""

    def __init__(self, method: str, context: Context, metrics: metrics_module.Metrics) -> None:
        self._method = method
        self._context = context
        self._metrics = metrics
        self.request_id = _request_id(context)
        self._log = log.bind(method=method, request_id=self.request_id, caller=callers.of(context).name)

    def end(self, code: grpc.StatusCode) -> None:
        self._metrics.rpcs.labels(self._method, code.name).inc()
        self._log.debug("rpc.ended", code=code.name)

    async def fail(self, error: Exception) -> None:
        """Ends the call with the code of the error; raises."""
        if not isinstance(error, errors.TmsError | grpc.RpcError) and self._context.done():
            raise error
        code = table.code(error)
        self._metrics.rpcs.labels(self._method, code.name).inc()
        if code is grpc.StatusCode.INTERNAL:
            self._log.error("rpc.failed", code=code.name, exc_info=error)
        else:
            self._log.info("rpc.refused", code=code.name, error=str(error))
        message = table.message(error, self.request_id)
        await self._context.abort(code, message, table.trailing(error, self.request_id))


def _request_id(context: Context) -> str:
    given = callers.metadata(context, REQUEST_ID)
    if given and len(given) <= 128 and given.isprintable():
        return given
    return secrets.token_hex(8)
