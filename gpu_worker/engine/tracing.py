"""How traces follow requests through the engine.

Must cost nothing where nobody traces. A front is asked for nothing but when it received a request: its sending is the
time it takes to accept the answer.
"""

from __future__ import annotations

import time
from typing import Protocol

from gpu_worker.engine import border, spec, trace, work

# Names of the events of a front: receiving began and ended, sending began and ended.
_FRONT = {
    "HTTP": ("HTTP_RECV_START", "HTTP_RECV_END", "HTTP_SEND_START", "HTTP_SEND_END"),
    "GRPC": ("GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "GRPC_SEND_START", "GRPC_SEND_END"),
}


class Tracer(Protocol):
    """Decides which requests are traced."""

    @property
    def on(self) -> bool:
        """Whether any request may be."""
        ...

    def begin(self, model: spec.ModelSpec, each: work.Work) -> None:
        """Gives an admitted request its trace, if it is to have one."""
        ...

    def child(self, parent: trace.Trace, model: spec.ModelSpec, each: work.Work) -> None:
        """Gives a step of a traced request a trace of its own."""
        ...


class _Nobody:
    on = False

    def begin(self, model: spec.ModelSpec, each: work.Work) -> None:
        """Nobody traces."""

    def child(self, parent: trace.Trace, model: spec.ModelSpec, each: work.Work) -> None:
        """Nobody traces."""


NOBODY = _Nobody()


def follow(found: trace.Trace, each: work.Work) -> None:
    """From now on the trace follows the request to its answer."""
    received = each.request.received
    if received is not None:
        start, end, _, _ = _FRONT[received.front]
        found.parent = received.parent
        found.stamp(start, received.start_ns)
        found.stamp(end, received.end_ns)
    found.stamp("REQUEST_START", each.arrival_ns)
    found.stamp("QUEUE_START", time.monotonic_ns())
    found.show("TENSOR_QUEUE_INPUT", filter(None, each.inputs))
    each.trace = found
    each.request.reply = _Reply(found, each.request.reply, received.front if received else None)


class _Reply:
    """The reply of a traced request: notes when answers leave, and that the last one has."""

    def __init__(self, found: trace.Trace, inner: border.Reply, front: str | None) -> None:
        self._trace = found
        self._inner = inner
        self._sending = _FRONT[front][2:] if front else None

    def __call__(self, answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
        found = self._trace
        found.stamp("INFER_RESPONSE_COMPLETE", time.monotonic_ns())
        if self._sending:
            found.stamp(self._sending[0], time.monotonic_ns())
        try:
            self._inner(answer, final=final)
        finally:
            if self._sending:
                found.stamp(self._sending[1], time.monotonic_ns())
            if final:
                found.stamp("REQUEST_END", time.monotonic_ns())
                found.done(found)
