"""Decides what a failure looks like: its exit code and its lines on stderr. Never shows a traceback, never guesses.

One table leads from gRPC codes to exit codes, one from the reasons for which a lease ends.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from tmsctl import values

if typing.TYPE_CHECKING:
    import grpc
    from google.protobuf import message


class Exit(enum.IntEnum):
    """What the shell sees. The text of each is in MEANINGS."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    INVALID = 4
    PRECONDITION = 5
    NO_CAPACITY = 6
    UNAVAILABLE = 7
    DENIED = 8
    UNIMPLEMENTED = 9
    EXISTS = 10
    INTERRUPTED = 130


MEANINGS: Mapping[Exit, str] = MappingProxyType(
    {
        Exit.OK: "done",
        Exit.FAILED: "failed for another reason, such as a model that does not load",
        Exit.USAGE: "the command line is wrong; nothing was sent",
        Exit.NOT_FOUND: "no such lease, name, pool, model or target",
        Exit.INVALID: "a value is wrong; the message names the field",
        Exit.PRECONDITION: "the object's state forbids it: the lease has ended, the pool is in use",
        Exit.NO_CAPACITY: "no room: the lease can never fit, or it waited too long",
        Exit.UNAVAILABLE: "the server does not answer, or not in time",
        Exit.DENIED: "no valid credential, or no right to do so",
        Exit.UNIMPLEMENTED: "understood, and not done by this server or its backend",
        Exit.EXISTS: "the name or request id is taken by something else",
        Exit.INTERRUPTED: "interrupted with Ctrl-C",
    }
)

# `tmsctl run` adds this to its own failures, so that they are not taken for the command's.
RUN_OFFSET = 200

_BY_CODE: Mapping[str, Exit] = MappingProxyType(
    {
        # Never our own doing: a server that stops cuts its calls off so.
        "CANCELLED": Exit.UNAVAILABLE,
        "UNKNOWN": Exit.FAILED,
        "INVALID_ARGUMENT": Exit.INVALID,
        "DEADLINE_EXCEEDED": Exit.UNAVAILABLE,
        "NOT_FOUND": Exit.NOT_FOUND,
        "ALREADY_EXISTS": Exit.EXISTS,
        "PERMISSION_DENIED": Exit.DENIED,
        "RESOURCE_EXHAUSTED": Exit.NO_CAPACITY,
        "FAILED_PRECONDITION": Exit.PRECONDITION,
        "ABORTED": Exit.UNAVAILABLE,
        "OUT_OF_RANGE": Exit.PRECONDITION,
        "UNIMPLEMENTED": Exit.UNIMPLEMENTED,
        "INTERNAL": Exit.FAILED,
        "UNAVAILABLE": Exit.UNAVAILABLE,
        "DATA_LOSS": Exit.FAILED,
        "UNAUTHENTICATED": Exit.DENIED,
    }
)

_BY_END: Mapping[str, Exit] = MappingProxyType(
    {"CannotFit": Exit.NO_CAPACITY, "PendingTimeout": Exit.NO_CAPACITY, "ModelFailed": Exit.FAILED}
)


# What the TLS library says of a certificate that it does not accept; asking again would not help.
_TLS_SIGNS = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed", "WRONG_VERSION_NUMBER")


class CliError(Exception):
    """A failure to show: `field` is where the input is wrong (may be empty), `remedy` what to do (may be empty)."""

    def __init__(self, message: str, *, code: int = Exit.FAILED, field: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field
        self.remedy = remedy

    def lines(self) -> Iterator[str]:
        """What stderr gets: the error first, then the remedy."""
        said = f"error: {self.field}: {self.message}" if self.field else f"error: {self.message}"
        yield from map(values.clean, said.splitlines())
        for line in self.remedy.splitlines():
            yield values.clean(line if line.startswith("error: ") else f"  {line}")


def exit_for_code(code: grpc.StatusCode) -> Exit:
    """The exit code of a status; FAILED for one that is not known."""
    return _BY_CODE.get(code.name, Exit.FAILED)


def exit_for_end(reason: str) -> Exit:
    """The exit code when a lease that was waited for ended with this reason."""
    return _BY_END.get(reason, Exit.PRECONDITION)


def from_rpc(error: grpc.RpcError, address: str) -> CliError:
    """Reads the status and its google.rpc details; several wrong fields make one error of several lines."""
    code, text = error.code(), error.details() or ""
    if code.name in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
        return _unreachable(code, text, address)
    details = _details(error)
    remedy, violations = _remedy(details), list(_violations(details))
    if not violations:
        return CliError(text or code.name, code=exit_for_code(code), remedy=remedy)
    field, said = violations[0]
    more = [f"error: {name}: {other}" for name, other in violations[1:]]
    return CliError(said, code=exit_for_code(code), field=field, remedy="\n".join(filter(None, [*more, remedy])))


def _unreachable(code: grpc.StatusCode, text: str, address: str) -> CliError:
    if any(sign in text for sign in _TLS_SIGNS):
        return CliError(
            f"the server at {address} cannot be trusted: {text}",
            code=Exit.DENIED,
            remedy="Is its authority the --ca of this target, and the address a name of its certificate? "
            "`tmsctl target list` shows both; `tmsctl target add` saves them.",
        )
    late = code.name == "DEADLINE_EXCEEDED"
    said = "no answer in time" if late else (text or "no connection")
    return CliError(
        f"the server at {address} does not answer: {said}",
        code=Exit.UNAVAILABLE,
        remedy="Is it running, and does it speak TLS just where tmsctl does (--ca)? `tmsctl target list` shows where "
        "tmsctl connects; --target and TMS_TARGET choose.",
    )


def _details(error: grpc.RpcError) -> list[message.Message]:
    # The imports take their time and only a failed call needs them.
    from google.rpc import error_details_pb2  # noqa: PLC0415 - lazily, see above
    from grpc_status import rpc_status  # noqa: PLC0415 - lazily, see above

    try:
        status = rpc_status.from_call(typing.cast("grpc.Call", error))
    except ValueError:  # the details contradict the status: the status counts
        return []
    found = []
    for packed in status.details if status else ():
        package, _, name = packed.TypeName().rpartition(".")
        kind = getattr(error_details_pb2, name, None) if package == "google.rpc" else None
        if kind is not None:
            found.append(kind.FromString(packed.value))
    return found


def _violations(details: Iterable[typing.Any]) -> Iterator[tuple[str, str]]:
    for detail in details:
        if detail.DESCRIPTOR.name == "BadRequest":
            yield from ((each.field, each.description) for each in detail.field_violations)
        elif detail.DESCRIPTOR.name == "PreconditionFailure":
            yield from ((each.subject, each.description) for each in detail.violations)


def _remedy(details: Iterable[typing.Any]) -> str:
    for detail in details:
        if detail.DESCRIPTOR.name == "Help":
            return "; ".join(link.description for link in detail.links)
        if detail.DESCRIPTOR.name == "LocalizedMessage":
            return str(detail.message)
    return ""
