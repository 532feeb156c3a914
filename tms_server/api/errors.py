"""The one table from errors to gRPC codes, and the details that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tms_server.model import errors

DOMAIN = "tms.v1"
DETAILS_KEY = "grpc-status-details-bin"
"""Where gRPC's rich status travels."""
CODES: Mapping[type[errors.TmsError], grpc.StatusCode] = MappingProxyType(
    {
        errors.InvalidField: grpc.StatusCode.INVALID_ARGUMENT,
        errors.NotFound: grpc.StatusCode.NOT_FOUND,
        errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
        errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
        errors.RevisionGone: grpc.StatusCode.OUT_OF_RANGE,
        errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
        errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
        errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
        errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.IllegalTransition: grpc.StatusCode.INTERNAL,
        errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
        errors.Conflict: grpc.StatusCode.ABORTED,
    }
)
INTERNAL_MESSAGE = "the server failed; its log has the cause under this request id"


def code(error: Exception) -> grpc.StatusCode:
    """The code of an error; INTERNAL for what nobody foresaw."""
    kinds = (CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    return next(kinds, grpc.StatusCode.INTERNAL)


def message(error: Exception, request_id: str) -> str:
    """What the caller is told; nothing of the inside of an unforeseen failure."""
    if code(error) is grpc.StatusCode.INTERNAL:
        return f"{INTERNAL_MESSAGE}: {request_id}"
    return str(error) or type(error).__name__


def status(error: Exception, request_id: str) -> status_pb2.Status:
    """The google.rpc.Status of an error: ErrorInfo with its name, BadRequest where a field is wrong."""
    told = status_pb2.Status(code=_number(code(error)), message=message(error, request_id))
    known = isinstance(error, errors.TmsError)
    info = error_details_pb2.ErrorInfo(
        reason=type(error).__name__ if known else "Internal", domain=DOMAIN, metadata={"request_id": request_id}
    )
    told.details.append(_any(info))
    if isinstance(error, errors.InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.path, description=error.remedy)
        told.details.append(_any(error_details_pb2.BadRequest(field_violations=[violation])))
    return told


def trailing(error: Exception, request_id: str) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the status."""
    return ((DETAILS_KEY, status(error, request_id).SerializeToString()),)


def _number(of: grpc.StatusCode) -> code_pb2.Code.ValueType:
    return code_pb2.Code.ValueType(of.value[0])


def _any(detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
