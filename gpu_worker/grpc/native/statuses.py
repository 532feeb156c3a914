"""How an answer begins and ends on the wire (gRPC over HTTP/2, "Responses"). Pure.

Must never let a message be larger than what clients take as headers.
"""

from __future__ import annotations

import functools
import urllib.parse

import grpc

from gpu_worker.http2 import frames, hpack

# Clients of gRPC's core take 8 KiB of headers by default, encoded.
_MESSAGE_BYTES = 6000
_UNESCAPED = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_ENCODINGS = (b"grpc-accept-encoding", b"identity, deflate, gzip")

HEAD = frames.Block(hpack.encode(_HEAD), last=False)
"""Of an answer whose messages are not compressed."""

HEAD_GZIP = frames.Block(hpack.encode((*_HEAD, (b"grpc-encoding", b"gzip"))), last=False)
"""Of an answer whose messages may be compressed."""

OK = frames.Block(hpack.encode(((b"grpc-status", b"0"),)), last=True)
"""Ends what went well."""


def trailers(code: grpc.StatusCode, message: str) -> frames.Block:
    """Ends a call whose head is out."""
    return frames.Block(hpack.encode(_trailers(code, message)), last=True)


def only_trailers(code: grpc.StatusCode, message: str) -> frames.Block:
    """All of an answer that has no message."""
    return frames.Block(hpack.encode((*_HEAD, *_trailers(code, message))), last=True)


def unknown_encoding(name: bytes) -> frames.Block:
    """For messages that cannot be read, with the encodings that can (gRPC's compression document)."""
    message = f"grpc-encoding '{name.decode('latin-1')[:100]}' is not supported: use gzip, deflate or identity"
    fields = (*_HEAD, *_trailers(grpc.StatusCode.UNIMPLEMENTED, message), _ENCODINGS)
    return frames.Block(hpack.encode(fields), last=True)


@functools.lru_cache(maxsize=64)
def percent_encoded(message: str) -> bytes:
    """grpc-message: printable ASCII but % as it is, the rest as UTF-8 in percents; cut to what a trailer holds."""
    encoded = urllib.parse.quote(message.strip(), safe=_UNESCAPED, errors="replace")
    if len(encoded) > _MESSAGE_BYTES:
        encoded = encoded[:_MESSAGE_BYTES]
        half = encoded.rfind("%", _MESSAGE_BYTES - 2)
        encoded = encoded[:half] if half >= 0 else encoded
    return encoded.encode()


def _trailers(code: grpc.StatusCode, message: str) -> tuple[hpack.Field, ...]:
    number: int = code.value[0]
    status = (b"grpc-status", str(number).encode())
    return (status, (b"grpc-message", percent_encoded(message))) if message else (status,)
