"""What a model asks of other models of the same worker, and what it is answered.

Belongs to the event loop. Must never answer a process that has ended, nor leave a request with the engine that nobody in
it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gpu_worker.engine import border
from gpu_worker.ipc import link
from gpu_worker.python_backend import process, wire

Submit = Callable[[Sequence[border.InferRequest]], None]
KINDS = tuple(border.ErrorKind)
"""By the number that models know them by."""


class Asking:
    """The requests of one process."""

    def __init__(self, peer: process.Process, submit: Submit) -> None:
        self._peer = peer
        self._submit = submit
        self._requests: dict[int, border.InferRequest] = {}

    def ask(self, message: link.Message) -> None:
        """Hands a request over to the engine."""
        head = wire.unpack(message.head)
        request = border.InferRequest(
            model=head["model"],
            version=head["version"],
            id=head["id"],
            inputs=[
                border.Tensor(name, datatype, tuple(shape), data)
                for (name, datatype, shape), data in zip(head["inputs"], message.buffers, strict=True)
            ],
            outputs=[border.RequestedOutput(name) for name in head["outputs"]],
            parameters=head["parameters"],
            reply=_Reply(self, message.number),
        )
        self._requests[message.number] = request
        self._submit([request])

    def give_up(self, number: int) -> None:
        """The model does not wait for that any more."""
        request = self._requests.pop(number, None)
        if request is not None:
            request.cancel()

    def close(self) -> None:
        """The process has ended."""
        for number in list(self._requests):
            self.give_up(number)

    def answer(self, number: int, answer: border.InferResponse | border.InferenceError, *, final: bool) -> None:
        if number not in self._requests:
            return
        model = self._requests[number].model
        if final:
            del self._requests[number]
        if isinstance(answer, border.InferenceError):
            # In Triton's words.
            answer = border.InferenceError(
                answer.kind, f"Model {model} - Error when running inference: {answer.message}"
            )
        message = _message(number, answer, final=final)
        try:
            self._peer.check(message)
        except ValueError as error:
            message = _message(number, border.InferenceError(border.ErrorKind.INTERNAL, str(error)), final=final)
        self._peer.post(message)


class _Reply:
    __slots__ = ("_asking", "_number")

    def __init__(self, asking: Asking, number: int) -> None:
        self._asking = asking
        self._number = number

    def __call__(self, answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
        self._asking.answer(self._number, answer, final=final)


def _message(number: int, answer: border.InferResponse | border.InferenceError, *, final: bool) -> link.Message:
    head: dict[str, Any]
    if isinstance(answer, border.InferenceError):
        head, buffers = {"error": [KINDS.index(answer.kind), answer.message]}, []
    else:
        head = {"outputs": [[each.name, each.datatype, list(each.shape)] for each in answer.outputs]}
        head["parameters"] = dict(answer.parameters)
        buffers = [each.data for each in answer.outputs]
    return link.Message(wire.Kind.ANSWER, number, wire.pack(head), buffers, flags=wire.FINAL * final)
