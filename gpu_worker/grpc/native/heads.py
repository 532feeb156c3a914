"""What a request's head says to gRPC (gRPC over HTTP/2, "Requests"). Pure.

Made once for requests that look the same: nothing in here may belong to one call.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

import grpc

from gpu_worker.grpc import calls
from gpu_worker.grpc.native import statuses, strangers
from gpu_worker.http2 import frames, headers

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_ENCODINGS = (b"identity", b"gzip", b"deflate")
_RESERVED = {b"content-type", b"te", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-message-type"}
_CONTENT_TYPE = re.compile(rb"application/grpc(?:[+;].*)?", re.IGNORECASE).fullmatch
_BINARY = b"-bin"


class View:
    """`refusal` answers what is no call, `failure` a call that cannot be made; else `method` says what is to be done."""

    __slots__ = (
        "_fields",
        "_metadata",
        "accepts_gzip",
        "encoding",
        "failure",
        "method",
        "path",
        "refusal",
        "timeout_s",
    )

    def __init__(self, head: headers.Head, method: calls.Method | None) -> None:
        self.method = method
        self.path = head.path.decode("latin-1")
        self.encoding = "identity"
        self.timeout_s: float | None = None
        self.accepts_gzip = False
        self._fields = head.fields
        self._metadata: tuple[tuple[str, str | bytes], ...] | None = None
        self.refusal: strangers.Refusal | None = None
        self.failure = self._read(head)

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the client sent along, without what is gRPC's own."""
        if self._metadata is None:
            self._metadata = tuple(
                (name.decode("ascii"), _value(name, value))
                for name, value in self._fields
                if name[0] != 0x3A and name not in _RESERVED
            )
        return self._metadata

    def _read(self, head: headers.Head) -> frames.Block | None:
        own = {name: value for name, value in self._fields if name in _RESERVED}
        if head.method != b"POST" or not _CONTENT_TYPE(own.get(b"content-type", b"")):
            self.refusal = strangers.refusal(head)
            return None
        if self.method is None:
            return statuses.only_trailers(grpc.StatusCode.UNIMPLEMENTED, f"Method not found: {self.path[:200]}")
        encoding = own.get(b"grpc-encoding", b"identity")
        if encoding not in _ENCODINGS:
            return statuses.unknown_encoding(encoding)
        self.encoding = encoding.decode()
        self.accepts_gzip = b"gzip" in own.get(b"grpc-accept-encoding", b"").replace(b" ", b"").split(b",")
        return self._read_timeout(own)

    def _read_timeout(self, own: Mapping[bytes, bytes]) -> frames.Block | None:
        text = own.get(b"grpc-timeout")
        if text is None:
            return None
        found = _TIMEOUT(text)
        if not found:
            shown = text.decode("latin-1")[:100]
            message = f"grpc-timeout '{shown}' is malformed: up to 8 digits and one of H, M, S, m, u, n are expected"
            return statuses.only_trailers(grpc.StatusCode.INVALID_ARGUMENT, message)
        self.timeout_s = int(found[1]) * _UNITS_S[found[2]]
        return None


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
