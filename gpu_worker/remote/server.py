"""The engine's side of the border: takes requests and calls of front processes, and brings answers to the right one.

Decides when a front is given up: one that takes no answers, or is not understood. Must never wait for a front, let one
call what is not the border's, nor keep anything of a front that is gone.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from gpu_worker import logs
from gpu_worker.engine import border, departures
from gpu_worker.ipc import link, pump
from gpu_worker.remote import messages

log = structlog.get_logger(__name__)

CALLS = frozenset(name for name, method in vars(border.Engine).items() if inspect.iscoroutinefunction(method))
"""What a front may call: all of the border that is awaited."""

_RETRY_S = 0.001


class Bounds:
    """Most answers, and most bytes of them, that wait for one front to take earlier ones."""

    answers = 2**16
    answer_bytes = 2**30


class Front:
    """One front process, from its connecting until `close`. `given_up` is called, once, when it is to be ended."""

    def __init__(
        self,
        engine: border.Engine,
        leaving: departures.Departures,
        sender: link.Sender,
        receiver: link.Receiver,
        given_up: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._sender = sender
        self._given_up = given_up
        self._requests: dict[int, border.InferRequest] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._arrived: list[border.InferRequest] = []
        self._waiting: collections.deque[link.Message] = collections.deque()
        self._waiting_bytes = 0
        self._retry: asyncio.TimerHandle | None = None
        self._open = True
        self._pump = pump.Pump(receiver, self._handle, self._submit, self._fail)
        self._end_listening = leaving.listen(self._tell_leaving)
        self._end_logging = logs.listen(self._tell_logging)

    @property
    def in_flight(self) -> int:
        """Requests and calls without an answer."""
        return len(self._requests) + len(self._tasks)

    def close(self) -> None:
        """The front is gone: its requests and calls are cancelled, and its memory goes with what still uses it."""
        if not self._open:
            return
        self._open = False
        self._pump.stop()
        # Else this and the listener would hold each other, and the front's memory, until garbage is searched for.
        endings = (self._end_listening, self._end_logging)
        self._end_listening = self._end_logging = _nothing
        for end in endings:
            end()
        for request in self._requests.values():
            request.cancel()
        for task in self._tasks.values():
            task.cancel()
        self._requests.clear()
        self._arrived.clear()
        self._waiting.clear()
        if self._retry:
            self._retry.cancel()

    def answer(self, number: int, given: messages.Answer, *, final: bool) -> None:
        """Brings an answer of a request to the front; dropped where that is gone."""
        if final:
            self._requests.pop(number, None)
        if self._open:
            self._post(self._message(number, given, final=final))

    def _message(self, number: int, given: messages.Answer, *, final: bool) -> link.Message:
        try:
            message = messages.answer(number, given, final=final)
            self._sender.check(message)
        except (TypeError, ValueError, BufferError) as error:
            log.warning("answer.unsendable", reason=str(error))
            unsendable = border.InferenceError(border.ErrorKind.INTERNAL, f"the answer cannot be sent: {error}")
            return messages.answer(number, unsendable, final=final)
        return message

    def _handle(self, message: link.Message) -> None:
        if message.kind == messages.Kind.REQUEST:
            request = messages.read_request(message, _Reply(self, message.number))
            self._requests[message.number] = request
            self._arrived.append(request)
        elif message.kind == messages.Kind.CANCEL:
            self._cancel(message.number)
        elif message.kind == messages.Kind.CALL:
            self._call(message)

    def _submit(self) -> None:
        """Hands the requests of one turn over."""
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            self._engine.submit(arrived)

    def _cancel(self, number: int) -> None:
        request, task = self._requests.get(number), self._tasks.get(number)
        if request is not None:
            request.cancel()
        if task is not None:
            task.cancel()

    def _call(self, message: link.Message) -> None:
        name, positional, named = messages.read_call(message)
        work = self._run(message.number, name, positional, named)
        task = self._tasks[message.number] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(functools.partial(self._called, message.number))

    def _called(self, number: int, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(number, None)

    async def _run(self, number: int, name: str, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        try:
            found = messages.result(number, await self._method(name)(*positional, **named))
            self._sender.check(found)
        except border.InferenceError as error:
            found = messages.failure(number, error)
        except Exception:
            log.exception("call.failed", call=name)
            internal = border.InferenceError(border.ErrorKind.INTERNAL, "Internal error; the server's log says more")
            found = messages.failure(number, internal)
        if self._open:
            self._post(found)

    def _method(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name not in CALLS:
            raise border.InferenceError(border.ErrorKind.UNSUPPORTED, f"the engine has no call '{name}'")
        method: Callable[..., Coroutine[Any, Any, Any]] = getattr(self._engine, name)
        return method

    def _tell_leaving(self, model: str, leaves: bool) -> None:  # noqa: FBT001 - a listener's form
        self._post(messages.leaving(model, leaves))

    def _tell_logging(self, settings: logs.Settings) -> None:
        self._post(messages.logging(settings.told()))

    def _post(self, message: link.Message) -> None:
        """Sends it, after those that wait for room."""
        if not self._waiting and self._sender.send(message):
            self._sender.publish()
            return
        self._waiting.append(message)
        self._waiting_bytes += message.size_bytes
        if len(self._waiting) > Bounds.answers or self._waiting_bytes > Bounds.answer_bytes:
            self._fail("it takes no answers")
        elif self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._send_waiting)

    def _send_waiting(self) -> None:
        self._retry = None
        while self._waiting and self._sender.send(self._waiting[0]):
            self._waiting_bytes -= self._waiting.popleft().size_bytes
        self._sender.publish()
        if self._waiting:
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._send_waiting)

    def _fail(self, reason: str) -> None:
        if self._open:
            log.error("front.given_up", reason=reason, in_flight=self.in_flight)
            self.close()
            self._given_up(reason)


def _nothing() -> None:
    """There is nothing more to end."""


class _Reply:
    """How the engine answers one request of a front."""

    __slots__ = ("_front", "_number")

    def __init__(self, front: Front, number: int) -> None:
        self._front = front
        self._number = number

    def __call__(self, answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
        self._front.answer(self._number, answer, final=final)
