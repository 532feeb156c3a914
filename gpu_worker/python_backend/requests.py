"""Requests and responses as a model's code sees them, its own requests to other models among them.

Decides what of a response travels: only outputs that were asked for. Must never let a model answer a request twice.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpu_worker.ipc import link
from gpu_worker.python_backend import context, wire
from gpu_worker.python_backend.errors import TritonError, TritonModelException
from gpu_worker.python_backend.tensors import Tensor

RESPONSE_COMPLETE_FINAL = 1
FLAG_SEQUENCE_START = 1
FLAG_SEQUENCE_END = 2
RELEASE_ALL = 1
_CPU_MEMORY = 0
_GPU_MEMORY = 1


class PreferredMemory:
    """Where a model wants the outputs of its own requests; they are always in the memory of the CPU."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        self._kind = preferred_memory_type
        self._device = preferred_device_id

    def preferred_memory_type(self) -> int:
        return self._kind

    def preferred_device_id(self) -> int:
        return self._device


class InferenceTrace:
    """A trace as it is handed on; the worker's own spans tell of requests."""

    def get_context(self) -> str | None:
        return None


class InferenceResponse:
    """Outputs, or an error; what there is of both is the model's to say."""

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._outputs = list(output_tensors)
        if any(not isinstance(each, Tensor) for each in self._outputs):
            raise TritonModelException("Output tensor for inference response should not be empty.")
        if isinstance(error, str):
            error = TritonError(error)
        self._error = error
        self._parameters = dict(parameters or {})

    def output_tensors(self) -> list[Tensor]:
        return list(self._outputs)

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def _packed(self, wanted: Sequence[str]) -> tuple[dict[str, Any], list[wire.Buffer]]:
        """Head and buffers. Raises TritonModelException for parameters that cannot travel."""
        if self._error is not None:
            return {"error": [self._error.code(), self._error.message()]}, []
        outputs = [each for each in self._outputs if each._name in wanted]
        head: dict[str, Any] = {"outputs": [[each._name, each._datatype, list(each._shape)] for each in outputs]}
        if self._parameters:
            head["parameters"] = _checked(self._parameters)
        return head, [each._wire() for each in outputs]


class InferenceResponseSender:
    """Answers one request, as often as the model wants, from any thread."""

    def __init__(self, request: InferenceRequest, *, decoupled: bool) -> None:
        self._request = request
        self._decoupled = decoupled
        self._lock = threading.Lock()
        self._sent = 0
        self._closed = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Sends a response, or only that no other follows. Raises TritonModelException where it must not be."""
        if flags not in {0, RESPONSE_COMPLETE_FINAL}:
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and not flags:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        head, buffers = response._packed(self._request._outputs) if response is not None else ({"outputs": []}, [])
        with self._lock:
            self._check(response)
            self._sent += response is not None
            self._closed = bool(flags)
            message = link.Message(wire.Kind.RESPOND, self._request._number, wire.pack(head), buffers, flags=flags)
            self._request._line.send(message)
        if flags:
            self._request._line.finished([self._request._number])

    def is_cancelled(self) -> bool:
        return self._request.is_cancelled()

    def _check(self, response: InferenceResponse | None) -> None:
        if self._closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        if self._decoupled:
            return
        if response is not None and self._sent:
            raise TritonModelException(
                "Unable to send response. Non-decoupled model cannot send more than one response."
            )
        if response is None and not self._sent:
            raise TritonModelException(
                "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
            )


class InferenceRequest:
    """A request to this model, or one that it makes of another (`exec`)."""

    def __init__(  # noqa: PLR0913, PLR0917 - what models know
        self,
        model_name: str,
        requested_output_names: Sequence[str],
        inputs: Sequence[Tensor],
        request_id: str = "",
        correlation_id: int | str = 0,
        model_version: int = -1,
        flags: int = 0,
        preferred_memory: PreferredMemory | None = None,
        timeout: int = 0,
        parameters: Mapping[str, Any] | None = None,
        trace: InferenceTrace | None = None,
    ) -> None:
        """`timeout` in microseconds; `model_version` -1 is the highest that serves."""
        self._model, self._version = str(model_name), int(model_version)
        self._outputs = [str(name) for name in requested_output_names]
        self._inputs = list(inputs)
        self._id, self._correlation, self._flags = str(request_id), correlation_id, int(flags)
        self._timeout, self._priority = int(timeout), 0
        self._parameters = _checked(dict(parameters or {}))
        self._memory = preferred_memory or PreferredMemory(_CPU_MEMORY)
        self._trace = trace or InferenceTrace()
        self._line = context.line()
        self._number = 0
        self._sender: InferenceResponseSender | None = None

    @classmethod
    def _received(cls, head: Mapping[str, Any], inputs: list[Tensor]) -> InferenceRequest:
        about = context.about()
        parameters = head["parameters"]
        made = cls(about.model, head["outputs"], inputs, head["id"], parameters.pop("sequence_id", 0), about.version)
        starts, ends = parameters.pop("sequence_start", False), parameters.pop("sequence_end", False)
        made._flags = FLAG_SEQUENCE_START * bool(starts) + FLAG_SEQUENCE_END * bool(ends)
        made._timeout = int(parameters.pop("timeout", 0))
        made._priority = int(parameters.pop("priority", 0))
        made._parameters = parameters
        made._number = head["number"]
        made._sender = InferenceResponseSender(made, decoupled=about.decoupled)
        return made

    def inputs(self) -> list[Tensor]:
        return list(self._inputs)

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> int | str:
        return self._correlation

    def model_name(self) -> str:
        return self._model

    def model_version(self) -> int:
        return self._version

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = int(flags)

    def timeout(self) -> int:
        return self._timeout

    def priority(self) -> int:
        return self._priority

    def parameters(self) -> str:
        """JSON of what the client gave beside the tensors."""
        return json.dumps(self._parameters)

    def requested_output_names(self) -> set[str]:
        return set(self._outputs)

    def preferred_memory(self) -> PreferredMemory:
        return self._memory

    def trace(self) -> InferenceTrace:
        return self._trace

    def is_cancelled(self) -> bool:
        return self._line.is_cancelled(self._number)

    def get_response_sender(self) -> InferenceResponseSender:
        if self._sender is None:
            raise TritonModelException("only a request that came to this model has a response sender")
        return self._sender

    def set_release_flags(self, flags: int) -> None:
        """Raises TritonModelException: a request cannot be put back into the queue."""
        if flags != RELEASE_ALL:
            raise TritonModelException("requests cannot be rescheduled: this server has no iterative sequences")

    def exec(self, *, decoupled: bool = False) -> Any:
        """Asks the other model and waits: the response, or with `decoupled` an iterator of responses."""
        number = self._line.ask(link.Message(wire.Kind.ASK, 0, *self._asked()))
        return self._responses(number) if decoupled else self._only(number)

    async def async_exec(self, *, decoupled: bool = False) -> Any:
        """The same in a thread of its own; with `decoupled` the iterator is not asynchronous."""
        return await asyncio.to_thread(self.exec, decoupled=decoupled)

    def _asked(self) -> tuple[bytes, list[wire.Buffer]]:
        parameters = dict(self._parameters)
        if self._correlation:
            parameters["sequence_id"] = self._correlation
            parameters["sequence_start"] = bool(self._flags & FLAG_SEQUENCE_START)
            parameters["sequence_end"] = bool(self._flags & FLAG_SEQUENCE_END)
        if self._timeout:
            parameters["timeout"] = self._timeout
        head = {
            "model": self._model,
            "version": "" if self._version < 0 else str(self._version),
            "id": self._id,
            "parameters": parameters,
            "outputs": self._outputs,
            "inputs": [[each._name, each._datatype, list(each._shape)] for each in self._inputs],
        }
        return wire.pack(head), [each._wire() for each in self._inputs]

    def _responses(self, number: int) -> Iterator[InferenceResponse]:
        final = False
        try:
            while not final:
                message = self._line.answer(number)
                final = bool(message.flags & wire.FINAL)
                response = received(message)
                if response.has_error() or response._outputs or not final:
                    yield response
        finally:
            if not final:
                self._give_up(number)

    def _only(self, number: int) -> InferenceResponse:
        message = self._line.answer(number)
        if not message.flags & wire.FINAL:
            self._give_up(number)
            return InferenceResponse(
                error=TritonError(
                    f"model '{self._model}' is decoupled: ask it with exec(decoupled=True)", TritonError.UNSUPPORTED
                )
            )
        return received(message)

    def _give_up(self, number: int) -> None:
        self._line.forget(number)
        self._line.send(link.Message(wire.Kind.UNASK, number))


def received(message: link.Message) -> InferenceResponse:
    """What another model answered."""
    head = wire.unpack(message.head)
    if "error" in head:
        code, words = head["error"]
        return InferenceResponse(error=TritonError(words, code))
    return InferenceResponse(tensors(head["outputs"], message.buffers), parameters=head.get("parameters"))


def tensors(heads: Sequence[Sequence[Any]], buffers: Sequence[wire.Buffer]) -> list[Tensor]:
    """Tensors over these buffers."""
    return [
        Tensor._received(name, datatype, tuple(shape), memoryview(data))
        for (name, datatype, shape), data in zip(heads, buffers, strict=True)
    ]


def _checked(parameters: dict[str, Any]) -> dict[str, Any]:
    for name, value in parameters.items():
        if not isinstance(value, (bool, int, float, str)):
            raise TritonModelException(f"parameter '{name}' must be a boolean, a number or a string")
    return parameters
