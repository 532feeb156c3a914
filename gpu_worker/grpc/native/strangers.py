"""Requests that are not gRPC's: they get an HTTP answer that says what this port speaks (gRPC over HTTP/2, "Responses").

Must never answer before a small request is whole: who sends it may not listen yet, and its faults are its stream's.
"""

from __future__ import annotations

import dataclasses

from gpu_worker.http2 import frames, hpack, streams

_PATIENCE_BYTES = 2**15


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """A whole answer."""

    head: frames.Block
    body: bytes = b""


def _refusal(status: bytes, words: bytes, *more: hpack.Field) -> Refusal:
    body = words + b"\n"
    fields = ((b":status", status), (b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), *more)
    return Refusal(frames.Block(hpack.encode(fields), last=False), body)


_NOT_GRPC = _refusal(b"415", b"This port speaks gRPC: content-type must be application/grpc")
_NOT_POST = _refusal(b"405", b"This port speaks gRPC: the method must be POST", (b"allow", b"POST"))
_BARE = Refusal(frames.Block(hpack.encode(((b":status", b"405"), (b"allow", b"POST"))), last=True))


def refusal(method: bytes) -> Refusal:
    """The answer to a request that is no call."""
    if method == b"HEAD":
        return _BARE
    return _NOT_GRPC if method == b"POST" else _NOT_POST


class Stranger:
    """The handler of such a request's stream: throws away what comes and answers in the end."""

    __slots__ = ("_answered", "_patience_bytes", "_refusal", "_stream")

    def __init__(self, stream: streams.Stream, refused: Refusal) -> None:
        self._stream = stream
        self._refusal = refused
        self._patience_bytes = _PATIENCE_BYTES
        self._answered = False

    def data(self, piece: streams.Buffer, ended: bool) -> None:  # noqa: FBT001 - Handler's
        self._stream.taken(len(piece))
        self._patience_bytes -= len(piece)
        if ended or self._patience_bytes < 0:
            self.ended()

    def ended(self) -> None:
        if self._answered:
            return
        self._answered = True
        body = self._refusal.body
        if body:
            self._stream.send(self._refusal.head, (body,), len(body))
            self._stream.finish(frames.END)
        else:
            self._stream.finish(self._refusal.head)

    def reset(self, code: int) -> None:
        """Nobody waits for the answer any more."""

    def writable(self) -> None:
        """The answer is handed over whole."""
