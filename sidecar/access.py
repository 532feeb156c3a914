"""What the sidecar shows to its worker with calls: the token of its group, and headers that restricted calls ask for.

Decides which headers can be meant: those that would change the protocol itself are refused. Must never tell a value,
neither in an error nor in a log.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

CONTROL = "tms-control-token"
GRPC_PREFIX = "triton-grpc-protocol-"
"""What servers put before the key of a header that they ask for over gRPC."""

_REFUSAL = "is restricted, expecting header"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,4094}[\x21-\x7e])?")
_MOST = 32
_RESERVED = frozenset(
    (
        CONTROL,
        "host",
        "connection",
        "content-length",
        "content-type",
        "transfer-encoding",
        "te",
        "user-agent",
        "upgrade",
    )
)

Pairs = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """`headers` by lower-case name go with every call, the token with those to the model repository."""

    token: str = dataclasses.field(default="", repr=False)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    def metadata(self) -> Pairs:
        """What goes with every gRPC call; servers that restrict calls look for the name with their prefix."""
        named = tuple(self.headers.items())
        return (*named, *((GRPC_PREFIX + name, value) for name, value in named))

    def control_metadata(self) -> Pairs:
        """What goes with the gRPC calls to the model repository."""
        return (*self.metadata(), *self._control().items())

    def control_headers(self) -> dict[str, str]:
        """What goes with the HTTP calls to the model repository."""
        return {**self.headers, **self._control()}

    def _control(self) -> dict[str, str]:
        return {CONTROL: self.token} if self.token else {}


NOTHING = Access()


def parse(text: str) -> dict[str, str]:
    """Headers of lines ``NAME=VALUE``; empty ones are skipped. ValueError names the line and the remedy."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, value = _pair(number, line)
        if name in found:
            raise ValueError(f"line {number} gives {name!r} again: give each header once")
        found[name] = value
    if len(found) > _MOST:
        raise ValueError(f"has {len(found)} headers: give {_MOST} at most")
    return found


def _pair(number: int, line: str) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    name, value = name.strip().lower().removeprefix(GRPC_PREFIX), value.strip()
    # Without the sign the whole line may be the secret.
    if not equals or not _NAME.fullmatch(name):
        raise ValueError(f"line {number} is not NAME=VALUE, with a name of letters, digits and _ . -")
    if name in _RESERVED or name.startswith("grpc-") or name.endswith("-bin"):
        raise ValueError(f"line {number} names {name!r}, which has a meaning of its own: name another header")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"line {number} gives {name!r} a value that is not 1 to 4096 printable ASCII characters")
    return name, value


def remedy(said: str) -> str:
    """What the administrator can do where a server refuses a call for want of a header; empty for any other answer."""
    if _REFUSAL not in said:
        return ""
    if CONTROL in said:
        return "give the worker (--control-token-file) and the sidecar (--token-file) the same token"
    return "give the sidecar the header and its value by --worker-headers-file (or TMS_SIDECAR_WORKER_HEADERS)"
