"""What all kinds of calls have in common: their metadata, deadline, failures and end.

Must never answer twice, nor keep anything of a call that is over.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf import message as protobuf

from gpu_worker.engine import border
from gpu_worker.grpc import service, status
from gpu_worker.grpc.native import assembling, deadlines, heads, statuses, turns
from gpu_worker.grpc.native import limits as native_limits
from gpu_worker.http2 import streams
from gpu_worker.wire import compression, datatypes
from gpu_worker.wire import intake as wire_intake

_T = TypeVar("_T")

# More than this leaves the event loop: at worst it takes tens of milliseconds.
_IN_THREAD_BYTES = 2**14
_INTERNAL = "Internal error; the server's log says more"


class Front(Protocol):
    """What calls ask of their front."""

    engine: border.Engine
    intake: wire_intake.Intake
    service: service.Service
    limits: native_limits.Limits
    deadlines: deadlines.Deadlines
    gathering: dict[Exchange, float]
    turns: turns.Turns
    clock: Callable[[], float]
    loop: asyncio.AbstractEventLoop
    compress: bool


class Exchange:
    """One call; also the handler of its stream."""

    __slots__ = (
        "_assembler",
        "_booked_bytes",
        "_slot",
        "answered",
        "deadline_s",
        "front",
        "held_bytes",
        "lingers",
        "model",
        "request",
        "started",
        "stream",
        "view",
        "work",
    )

    def __init__(self, front: Front, stream: streams.Stream, view: heads.View) -> None:
        self.front = front
        self.stream = stream
        self.view = view
        self.answered = False
        self.deadline_s: float | None = None
        self._assembler: assembling.Assembler | None = None
        # Only of ModelInfer and of calls with one request; here, since a constructor for each would take its time.
        self.started = False
        self.request: border.InferRequest | None = None
        self.held_bytes = 0
        self.lingers = False
        self.model = ""
        self.work: turns.Work[Any] | None = None
        self._booked_bytes = 0
        self._slot = 0
        if view.timeout_s is not None:
            self.deadline_s = front.clock() + view.timeout_s
            self._slot = front.deadlines.add(self, self.deadline_s)

    # -- calls.Call

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.view.metadata()

    async def write(self, message: protobuf.Message) -> None:
        """Only streaming calls have messages to write before their end."""
        raise NotImplementedError(message)

    # -- streams.Handler

    def writable(self) -> None:
        """Only streaming calls wait for room."""

    def reset(self, code: int) -> None:  # noqa: ARG002 - Handler's
        """The client has gone, or its connection."""
        if not self.answered:
            self.over()
            self.give_up()

    @property
    def withholds(self) -> bool:
        """Whether the client waits for room that this call does not give: then it is not late."""
        return False

    # -- ends

    def expire(self) -> None:
        """The deadline has passed."""
        self.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def expire_message(self) -> None:
        """A message has begun and does not come."""
        self.fail(grpc.StatusCode.CANCELLED, "a message took too long to arrive")

    def fail_with(self, error: Exception) -> None:
        """Ends the call with what `error` tells."""
        if isinstance(error, assembling.TooLarge):
            self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        elif self.deadline_s is not None and self.front.clock() >= self.deadline_s:
            # The engine may notice first, and says in words of its own that it gave up.
            self.expire()
        else:
            self.fail(*status.of(error, self.view.path))

    def fail(self, code: grpc.StatusCode, message: str) -> None:
        """Ends the call without a message of its own."""
        if self.answered:
            return
        self.over()
        self.stream.finish(statuses.only_trailers(code, message))
        self.give_up()

    def over(self) -> None:
        """The call's answer is decided."""
        self.answered = True
        if self.work is not None:
            self.work.drop()
            self.stream.lingers()
        if self._slot:
            self.front.deadlines.remove(self, self._slot)
        if self._assembler is not None:
            self._assembler.close()
            self._assembler = None
            self.front.gathering.pop(self, None)
        if self._booked_bytes:
            self.unbook(self._booked_bytes)

    def give_up(self) -> None:
        """Ends the work whose answer nobody wants."""

    # -- messages

    def book(self, size_bytes: int) -> bool:
        """Books bytes of messages that wait; False, and the call has failed, where there is no room."""
        if self.front.intake.hold(size_bytes):
            self._booked_bytes += size_bytes
            return True
        self.fail_with(border.InferenceError(border.ErrorKind.UNAVAILABLE, wire_intake.FULL))
        return False

    def unbook(self, size_bytes: int) -> None:
        """They wait no more."""
        self._booked_bytes -= size_bytes
        self.front.intake.let_go(size_bytes)

    def grows(self, piece: streams.Buffer) -> bool:
        """Whether `piece` came in the midst of a message and all of `add` is done for it: so come most of large ones."""
        if self._assembler is None or not self._assembler.grew(piece):
            return False
        self.front.gathering[self] += len(piece) / self.front.limits.least_bytes_per_s
        return True

    def add(self, piece: streams.Buffer) -> list[tuple[bool, streams.Buffer]]:
        """The messages that `piece` completes; none after a failure, which is told."""
        if self.answered:
            return []
        if self._assembler is None:
            self._assembler = assembling.Assembler(self.front.intake, self.front.limits.message_bytes)
        try:
            found = self._assembler.add(piece)
        except (border.InferenceError, assembling.TooLarge) as error:
            self.fail_with(error)
            return []
        self._watch(len(piece))
        return found

    def inflating(self, message: streams.Buffer) -> turns.Steps[streams.Buffer]:
        """`message` without its compression. InferenceError or TooLarge where that cannot be."""
        if self.view.encoding == "identity":
            raise datatypes.refused("a message is compressed, but grpc-encoding names no compression")
        most_bytes = self.front.limits.inflated_bytes
        try:
            return (yield from compression.inflating(message, self.view.encoding, most_bytes))
        except OverflowError:
            raise assembling.TooLarge(most_bytes + 1, most_bytes) from None

    def beside(self, steps: turns.Steps[_T], size_bytes: int, then: Callable[[_T], None]) -> None:
        """Does `steps` in a thread and passes their result on, unless the call is over by then.

        The `size_bytes` that they hold from the start are booked, and it counts as a stream, until it is done.
        """
        if not self.front.intake.hold(size_bytes):
            self.fail_with(border.InferenceError(border.ErrorKind.UNAVAILABLE, wire_intake.FULL))
            return
        self.work = work = self.front.turns.begin(self.stream.host, steps)
        work.done.add_done_callback(functools.partial(self._worked, size_bytes, then))

    def _worked(self, size_bytes: int, then: Callable[[_T], None], done: asyncio.Future[_T]) -> None:
        self.front.intake.let_go(size_bytes)
        self.work = None
        # Asked for in any case: a failure that nobody asks for would be logged as one that was overlooked.
        error = None if done.cancelled() else done.exception()
        if self.answered:
            self.stream.rested()
        elif isinstance(error, Exception):
            self.fail_with(error)
        elif not done.cancelled():
            then(done.result())

    def in_thread(self, size_bytes: int) -> bool:
        """Whether so many bytes are compressed or inflated beside the event loop."""
        return size_bytes > _IN_THREAD_BYTES

    def _watch(self, size: int) -> None:
        """Notes how long the rest of a message may take."""
        assert self._assembler is not None
        gathering, limits = self.front.gathering, self.front.limits
        if not self._assembler.incomplete:
            gathering.pop(self, None)
        elif self in gathering:
            gathering[self] += size / limits.least_bytes_per_s
        else:
            gathering[self] = self.front.clock() + limits.message_timeout_s
