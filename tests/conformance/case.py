"""What a case is: the bytes to send, which row of the protocol they show, what must come back.

Pure data. The page of the conformance is made from it without any server, so that a case must say all that the page shows.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import message

SERVICE = "inference.GRPCInferenceService"


class Transport(enum.Enum):
    HTTP = "HTTP"
    GRPC = "gRPC"


class Text(enum.Enum):
    """How the texts of two refusals are compared."""

    EXACT = "exact"
    FREE = "each server's own words"


@dataclasses.dataclass(frozen=True)
class Http:
    """One request as the bytes that go over a socket of its own."""

    data: bytes


@dataclasses.dataclass(frozen=True)
class Rpc:
    """One gRPC call: serialised messages under a method's full name. `cancel` gives the call up once it is on its way."""

    method: str
    messages: tuple[bytes, ...]
    stream: bool = False
    metadata: tuple[tuple[str, str], ...] = ()
    compression: str = ""
    timeout_s: float = 60.0
    cancel: bool = False


@dataclasses.dataclass(frozen=True)
class Twin:
    """A call whose bytes cannot be the same for both, since it carries a model's file."""

    ours: Http | Rpc
    triton: Http | Rpc


Call = Http | Rpc | Twin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A call, those that lead up to it and those that put things back; the answers of all are compared.

    `section` and `row` say where it stands on the page. What Triton answers is in `expected`, what ours answers otherwise
    in `differences`. `cleanup` is repeated until it succeeds and compared with nothing. `call` is repeated until
    its answer holds `settles`, for what a server counts only after it has answered. `masked` names members whose values are each server's own. `shared` are
    objects of shared memory by key: they are made before the calls and compared after them.
    """

    id: str
    section: str
    row: str
    call: Call
    text: Text = Text.EXACT
    before: tuple[Call, ...] = ()
    after: tuple[Call, ...] = ()
    cleanup: tuple[Call, ...] = ()
    settles: bytes = b""
    masked: frozenset[str] = frozenset()
    shared: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    setup: str = "plain"

    @property
    def calls(self) -> tuple[Call, ...]:
        return (*self.before, self.call, *self.after)

    @property
    def transport(self) -> Transport:
        call = self.call.ours if isinstance(self.call, Twin) else self.call
        return Transport.HTTP if isinstance(call, Http) else Transport.GRPC


def http(verb: str, path: str, body: bytes | object = b"", headers: Mapping[str, str] | None = None) -> Http:
    """A request with a JSON or literal body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{verb} {path} HTTP/1.1", "Host: conformance", "Connection: close"]
    if content or verb == "POST":
        lines.append(f"Content-Length: {len(content)}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return Http("\r\n".join([*lines, "", ""]).encode() + content)


def get(path: str) -> Http:
    return http("GET", path)


def post(path: str, body: bytes | object = b"", headers: Mapping[str, str] | None = None) -> Http:
    return http("POST", path, body, headers)


def rpc(name: str, *requests: message.Message | bytes, **settings: Any) -> Rpc:
    """A call of the inference service by its short name, or of another by its full one."""
    method = name if name.startswith("/") else f"/{SERVICE}/{name}"
    return Rpc(method, tuple(map(_bytes, requests)), stream=name == "ModelStreamInfer", **settings)


def named(prefix: str, cases: Sequence[Case]) -> list[Case]:
    """The cases with `prefix` before their ids."""
    return [dataclasses.replace(case, id=f"{prefix}/{case.id}") for case in cases]


def _bytes(request: message.Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString(deterministic=True)
