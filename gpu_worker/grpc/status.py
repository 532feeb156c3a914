"""How failures are told to gRPC clients: one table, one way out."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog

from gpu_worker.engine import border

log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_S = TypeVar("_S")
_Q = TypeVar("_Q")
_R = TypeVar("_R")

_STATUS = {
    border.ErrorKind.UNKNOWN: grpc.StatusCode.UNKNOWN,
    border.ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
    border.ErrorKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    border.ErrorKind.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    border.ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    border.ErrorKind.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    border.ErrorKind.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    border.ErrorKind.CANCELLED: grpc.StatusCode.CANCELLED,
}
# Trailers are bounded by the client; a message beyond this would hide the error behind another.
_MESSAGE_CHARACTERS = 2000
_FAR_S = 1e8


async def abort(context: Context, error: border.InferenceError) -> None:
    """Ends the call with the status of `error`; never returns normally."""
    await context.abort(_STATUS[error.kind], error.message[:_MESSAGE_CHARACTERS])


def told(method: Callable[[_S, _Q, Context], Awaitable[_R]]) -> Callable[[_S, _Q, Context], Awaitable[_R]]:
    """Turns what `method` raises into a status; what is not an InferenceError is logged and hidden."""

    @functools.wraps(method)
    async def run(self: _S, request: _Q, context: Context) -> _R:
        try:
            return await method(self, request, context)
        except border.InferenceError as error:
            await abort(context, error)
            raise
        except (grpc.aio.AbortError, grpc.aio.BaseError):
            raise
        except Exception:
            log.exception("grpc.handler_failed", method=method.__name__)
            internal = border.InferenceError(border.ErrorKind.INTERNAL, "Internal error; the server's log says more")
            await abort(context, internal)
            raise

    return run


def deadline_s(context: Context) -> float | None:
    """The call's deadline on the clock of the event loop."""
    remaining_s = context.time_remaining()
    # The stubs know no call without a deadline; the runtime gives None.
    if not remaining_s or remaining_s > _FAR_S:
        return None
    return asyncio.get_running_loop().time() + remaining_s
