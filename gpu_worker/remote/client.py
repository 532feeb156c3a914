"""The engine as a front process sees it: another process behind shared memory.

Decides what a front is told while the engine cannot take more or is gone. Must never wait for room, nor lose a request:
each is answered by the engine, or refused here.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog

from gpu_worker import logs
from gpu_worker.engine import border, delivery
from gpu_worker.ipc import link, pump
from gpu_worker.remote import messages

log = structlog.get_logger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

FULL = "Server has more requests on their way to its engine than it can hold; try again later"
GONE = "The engine of this server has ended"


def _called(
    method: Callable[Concatenate[border.Engine, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[RemoteEngine, _P], Coroutine[Any, Any, _R]]:
    """The same method, run by the engine process. Its arguments and result are plain values."""

    async def ask(self: RemoteEngine, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        found: _R = await self.call(method.__name__, args, kwargs)
        return found

    functools.update_wrapper(ask, method)
    return ask


class RemoteEngine(border.Engine):
    """Belongs to one event loop, from its making until `close`. `broken` is called if the engine is not understood."""

    live = _called(border.Engine.live)
    ready = _called(border.Engine.ready)
    server_metadata = _called(border.Engine.server_metadata)
    model_ready = _called(border.Engine.model_ready)
    model_metadata = _called(border.Engine.model_metadata)
    model_config = _called(border.Engine.model_config)
    statistics = _called(border.Engine.statistics)
    index = _called(border.Engine.index)
    load = _called(border.Engine.load)
    unload = _called(border.Engine.unload)
    leave = _called(border.Engine.leave)
    system_regions = _called(border.Engine.system_regions)
    register_system_region = _called(border.Engine.register_system_region)
    unregister_system_region = _called(border.Engine.unregister_system_region)
    cuda_regions = _called(border.Engine.cuda_regions)
    register_cuda_region = _called(border.Engine.register_cuda_region)
    unregister_cuda_region = _called(border.Engine.unregister_cuda_region)
    log_settings = _called(border.Engine.log_settings)
    trace_settings = _called(border.Engine.trace_settings)

    def __init__(self, sender: link.Sender, receiver: link.Receiver, broken: Callable[[str], None]) -> None:
        self._sender = sender
        self._broken = broken
        self._number = 0
        self._requests: dict[int, border.InferRequest] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._cancelled: dict[int, None] = {}
        self._leaving: set[str] = set()
        self._gone = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._pump = pump.Pump(receiver, self._handle, self._flush, self._fail)

    def submit(self, requests: Sequence[border.InferRequest]) -> None:
        refused: list[delivery.Answered] = []
        for request in requests:
            error = self._send(request)
            if error is not None:
                refused.append((request.reply, error))
        self._sender.publish()
        if refused:
            # Never from within `submit`: the front may not be ready for its reply yet.
            asyncio.get_running_loop().call_soon(delivery.deliver, refused)

    def leaving(self, model: str) -> bool:
        return "" in self._leaving or model in self._leaving

    async def call(self, name: str, positional: Sequence[Any], named: dict[str, Any]) -> Any:
        """The result of the engine's method of that name. Raises what it raises; UNAVAILABLE where it cannot be asked."""
        if self._gone:
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, GONE)
        number = self._next()
        message = messages.call(number, name, positional, named)
        self._sender.check(message)
        if not self._sender.send(message):
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, FULL)
        self._sender.publish()
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            return messages.read_result(await future)
        except asyncio.CancelledError:
            self._give_up(number)
            raise
        finally:
            self._calls.pop(number, None)

    async def drain(self, timeout_s: float) -> bool:
        """Waits until every request has its answer; false where that takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def lost(self) -> None:
        """The engine is gone: all that waits for it is answered so, and all that comes."""
        self.close()
        self._gone = True
        error = border.InferenceError(border.ErrorKind.UNAVAILABLE, GONE)
        waiting = [request.reply for request in self._requests.values()]
        self._requests.clear()
        self._idle.set()
        delivery.deliver([(reply, error.bare()) for reply in waiting])
        for future in self._calls.values():
            if not future.done():
                future.set_exception(error.bare())

    def close(self) -> None:
        """Hears nothing more."""
        self._pump.stop()

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _send(self, request: border.InferRequest) -> border.InferenceError | None:
        """Why the request cannot be sent, if so."""
        if self._gone:
            return border.InferenceError(border.ErrorKind.UNAVAILABLE, GONE)
        number = self._next()
        try:
            message = messages.request(number, request)
            self._sender.check(message)
            sent = self._sender.send(message)
        except (TypeError, ValueError, BufferError) as error:
            return border.InferenceError(border.ErrorKind.INVALID_ARGUMENT, f"malformed request: {error}")
        if not sent:
            return border.InferenceError(border.ErrorKind.UNAVAILABLE, FULL)
        # The engine has the bytes now; here they would only take memory.
        request.inputs = []
        self._requests[number] = request
        self._idle.clear()
        request.on_cancel = functools.partial(self._give_up, number)
        if request.cancelled:
            self._give_up(number)
        return None

    def _give_up(self, number: int) -> None:
        self._cancelled[number] = None
        self._flush()

    def _flush(self) -> None:
        """Sends the cancellations for which there was no room before; an answer makes them pointless."""
        if self._gone or not self._cancelled:
            return
        for number in tuple(self._cancelled):
            known = number in self._requests or number in self._calls
            if known and not self._sender.send(messages.cancel(number)):
                break
            del self._cancelled[number]
        self._sender.publish()

    def _handle(self, message: link.Message) -> None:
        if message.kind in (messages.Kind.ANSWER, messages.Kind.FAILURE) and message.number in self._requests:
            self._answered(message)
        elif message.kind in (messages.Kind.RESULT, messages.Kind.FAILURE):
            future = self._calls.get(message.number)
            if future is not None and not future.done():
                future.set_result(message)
        elif message.kind == messages.Kind.LEAVING:
            model, leaves = messages.read_leaving(message)
            (self._leaving.add if leaves else self._leaving.discard)(model)
        elif message.kind == messages.Kind.LOGGING:
            logs.follow(messages.read_logging(message))

    def _answered(self, message: link.Message) -> None:
        answer = messages.read_answer(message)
        final = messages.is_final(message)
        request = self._requests[message.number]
        if final:
            del self._requests[message.number]
            # Else the request and this would hold each other until garbage is searched for.
            request.on_cancel = None
            if not self._requests:
                self._idle.set()
        request.reply(answer, final=final)

    def _fail(self, reason: str) -> None:
        log.error("engine.not_understood", reason=reason)
        self.lost()
        self._broken(reason)
