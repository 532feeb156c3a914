"""What a request's head says to gRPC (gRPC over HTTP/2, "Requests"). Pure.

Made once for requests that look the same: nothing in here may belong to one call.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import NamedTuple

import grpc

from gpu_worker.grpc import calls
from gpu_worker.grpc.native import statuses, strangers
from gpu_worker.http2 import frames, headers

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_ENCODINGS = (b"identity", b"gzip", b"deflate")
_RESERVED = {b"content-type", b"te", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-message-type"}
_CONTENT_TYPE = re.compile(rb"application/grpc(?:[+;].*)?", re.IGNORECASE).fullmatch
_TIMEOUT_NAME = b"grpc-timeout"
_BINARY = b"-bin"
_COLON = 0x3A
_MOST_KINDS = 256
_MOST_KIND_BYTES = 1024


class Kind:
    """What requests of the same path and encodings have in common.

    `refusal` answers what is no call, `failure` a call that cannot be made.
    """

    __slots__ = ("accepts_gzip", "encoding", "failure", "method", "path", "refusal")

    def __init__(self, own: Own, method: calls.Method | None) -> None:
        self.method = method
        self.path = own.path.decode("latin-1")
        self.encoding = own.encoding.decode("latin-1")
        self.accepts_gzip = b"gzip" in own.accepted.replace(b" ", b"").split(b",")
        is_call = own.method == b"POST" and _CONTENT_TYPE(own.content_type)
        self.refusal = None if is_call else strangers.refusal(own.method)
        self.failure = None if self.refusal else self._failure(own)

    def _failure(self, own: Own) -> frames.Block | None:
        if self.method is None:
            return statuses.only_trailers(grpc.StatusCode.UNIMPLEMENTED, f"Method not found: {self.path[:200]}")
        if own.encoding not in _ENCODINGS:
            return statuses.unknown_encoding(own.encoding)
        return None


class Own(NamedTuple):
    """The fields that a Kind depends on."""

    method: bytes
    path: bytes
    content_type: bytes
    encoding: bytes
    accepted: bytes


class View:
    """What one request's head says; see Kind."""

    __slots__ = (
        "_fields",
        "_metadata",
        "accepts_gzip",
        "encoding",
        "failure",
        "infers",
        "method",
        "path",
        "refusal",
        "timeout_s",
    )

    def __init__(self, head: headers.Head, kind: Kind) -> None:
        self.method = kind.method
        self.path = kind.path
        self.encoding = kind.encoding
        self.accepts_gzip = kind.accepts_gzip
        self.refusal = kind.refusal
        self.failure = kind.failure
        self.timeout_s: float | None = None
        self.infers = False
        """Whether this is a call of ModelInfer and nothing else, as the front finds."""
        self._fields = head.fields
        self._metadata: tuple[tuple[str, str | bytes], ...] | None = None
        timeout = head.values.get(b"grpc-timeout")
        if timeout is not None and not (self.failure or self.refusal):
            self._take_timeout(timeout)

    def extended(self, fields: tuple[headers.Field, ...], timeout: bytes | None) -> View:
        """The same of a head with more fields, none of them gRPC's own but `timeout`."""
        made = View.__new__(View)
        made.become(self, fields)
        if timeout is not None and not (self.failure or self.refusal):
            made.keep_to(timeout)
        return made

    def become(self, base: View, fields: tuple[headers.Field, ...]) -> None:
        """Says of `fields` what `base` says of its own."""
        self.method = base.method
        self.path = base.path
        self.encoding = base.encoding
        self.accepts_gzip = base.accepts_gzip
        self.refusal = base.refusal
        self.failure = base.failure
        self.timeout_s = base.timeout_s
        self.infers = base.infers
        self._fields = fields
        self._metadata = None

    def keep_to(self, timeout: bytes) -> None:
        """Takes what grpc-timeout says, and said before."""
        self.timeout_s = None
        self._take_timeout(timeout)
        self.infers = self.infers and self.failure is None

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the client sent along, without what is gRPC's own."""
        if self._metadata is None:
            self._metadata = tuple(
                (name.decode("ascii"), _value(name, value))
                for name, value in self._fields
                if name[0] != _COLON and name not in _RESERVED
            )
        return self._metadata

    def _take_timeout(self, text: bytes) -> None:
        found = _TIMEOUT(text)
        if found:
            self.timeout_s = int(found[1]) * _UNITS_S[found[2]]
            return
        shown = text.decode("latin-1")[:100]
        message = f"grpc-timeout '{shown}' is malformed: up to 8 digits and one of H, M, S, m, u, n are expected"
        self.failure = statuses.only_trailers(grpc.StatusCode.INVALID_ARGUMENT, message)


class Views:
    """Of one front: remembers kinds, of which there are few."""

    def __init__(self, methods: Mapping[bytes, calls.Method]) -> None:
        self._methods = methods
        self._kinds: dict[Own, Kind] = {}

    def view(self, head: headers.Head) -> View:
        get = head.values.get
        own = Own(
            head.method,
            head.path,
            get(b"content-type", b""),
            get(b"grpc-encoding", b"identity"),
            get(b"grpc-accept-encoding", b""),
        )
        return View(head, self._kinds.get(own) or self._make(own))

    def view_like(self, view: View, fields: tuple[headers.Field, ...], shared: int) -> View | None:
        """As Application's."""
        timeout = None
        for name, value in fields[shared:]:
            if name in _RESERVED:
                if name != _TIMEOUT_NAME:
                    return None
                timeout = value
        return view.extended(fields, timeout)

    def _make(self, own: Own) -> Kind:
        kind = Kind(own, self._methods.get(own.path))
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        if sum(map(len, own)) <= _MOST_KIND_BYTES:
            self._kinds[own] = kind
        return kind


def _value(name: bytes, value: bytes) -> str | bytes:
    if not name.endswith(_BINARY):
        return value.decode("utf-8", "replace")
    return b",".join(map(_decoded, value.split(b",")))


def _decoded(value: bytes) -> bytes:
    """Base64 with or without padding; what is none is left as it is."""
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        return value
