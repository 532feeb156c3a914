"""How failures are told to gRPC clients: one table, one way out."""

from __future__ import annotations

import grpc
import structlog

from gpu_worker.engine import border

log = structlog.get_logger(__name__)

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


def of(error: Exception, method: str) -> tuple[grpc.StatusCode, str]:
    """Code and details for what a handler raised; what is not an InferenceError is logged and hidden."""
    if isinstance(error, border.InferenceError):
        return _STATUS[error.kind], error.message[:_MESSAGE_CHARACTERS]
    log.error("grpc.handler_failed", method=method, exc_info=error)
    return grpc.StatusCode.INTERNAL, "Internal error; the server's log says more"
