"""One ModelStreamInfer call: requests in, answers out in the order of the requests.

Decides how many requests of a stream are in flight. Requests of models with many responses are in no order among others:
each response goes out as it comes. A failed request is told as a message and the stream stays open, unless the client
asked for a real status. Must never hold answers without bound: a client that does not read is not read from, and loses
the requests whose responses pile up.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from google.protobuf import message as protobuf

from gpu_worker.engine import border
from gpu_worker.grpc import calls, codec, plans
from gpu_worker.wire import intake as wire_intake
from gpu_worker.wire import parameters
from gpu_worker.wire import rules as wire_rules
from protos.inference.v2 import predict_pb2

_MAX_IN_FLIGHT = 128
# Of one request. An engine cannot be slowed down yet, so this is room for all that a model says in a burst.
_MOST_WAITING_BYTES = 256 * 2**20
_REAL_STATUS = "triton_grpc_error"


class Form(Protocol):
    """How requests come and answers go."""

    def decode(self, message: Any, reply: border.Reply) -> border.InferRequest:
        """InferenceError for what is refused; protobuf's DecodeError."""
        ...

    def identifier(self, message: Any) -> str:
        """The id of a request that was refused."""
        ...

    def size_bytes(self, message: Any) -> int: ...

    def encode(self, answer: border.InferResponse, *, final: bool) -> Any:
        """What `write` takes."""
        ...

    def tell(self, failure: predict_pb2.ModelStreamInferResponse) -> Any:
        """The same of a failure."""
        ...

    async def write(self, call: Any, answer: Any) -> None: ...


class Messages:
    """As protobuf's messages."""

    def decode(self, message: predict_pb2.ModelInferRequest, reply: border.Reply) -> border.InferRequest:
        return codec.decode(message, message.raw_input_contents, reply)

    def identifier(self, message: predict_pb2.ModelInferRequest) -> str:
        return message.id

    def size_bytes(self, message: predict_pb2.ModelInferRequest) -> int:
        return message.ByteSize()

    def encode(self, answer: border.InferResponse, *, final: bool) -> predict_pb2.ModelStreamInferResponse:
        message = predict_pb2.ModelStreamInferResponse(infer_response=codec.encode(answer))
        message.infer_response.parameters[codec.FINAL].bool_param = final
        return message

    def tell(self, failure: predict_pb2.ModelStreamInferResponse) -> predict_pb2.ModelStreamInferResponse:
        return failure

    async def write(self, call: calls.Call, answer: predict_pb2.ModelStreamInferResponse) -> None:
        await call.write(answer)


class Parts:
    """As bytes: tensors are neither copied nor seen by protobuf, see `plans`."""

    def __init__(self, known: plans.Plans) -> None:
        self.decode = known.decode
        self.encode = known.encode_streamed

    def identifier(self, message: border.Buffer) -> str:
        found: str = predict_pb2.ModelInferRequest.FromString(bytes(message)).id
        return found

    def size_bytes(self, message: border.Buffer) -> int:
        return len(message)

    def tell(self, failure: predict_pb2.ModelStreamInferResponse) -> list[border.Buffer]:
        return [failure.SerializeToString()]

    async def write(self, call: calls.PartsCall, answer: list[border.Buffer]) -> None:
        await call.write_parts(answer)


MESSAGES = Messages()


class Stream:
    """Runs once."""

    def __init__(
        self,
        intake: wire_intake.Intake,
        rules: wire_rules.Rules,
        requests: AsyncIterator[Any],
        call: calls.Call,
        form: Form = MESSAGES,
    ) -> None:
        self._form = form
        self._intake = intake
        self._rules = rules
        self._requests = requests
        self._call = call
        self._real_status = calls.value(call, _REAL_STATUS).lower() == b"true"
        self._slots: collections.deque[_Slot] = collections.deque()
        self._room = asyncio.Semaphore(_MAX_IN_FLIGHT)
        self._turn = _Turn()
        self._read_all = False

    async def run(self) -> None:
        """Returns when the client has sent its last request and all are answered."""
        reader = asyncio.get_running_loop().create_task(self._read())
        try:
            await self._write_all()
            await reader
        finally:
            reader.cancel()
            for slot in self._slots:
                slot.give_up()

    async def _read(self) -> None:
        try:
            # A request is asked for only once there is room: until then its bytes are booked by who has it.
            await self._room.acquire()
            async for message in self._requests:
                slot = _Slot(self._intake, self._turn, self._form)
                slot.submit(message, self._rules, self._call)
                self._slots.append(slot)
                await self._room.acquire()
        except protobuf.DecodeError:
            raise border.InferenceError(border.ErrorKind.INTERNAL, "Exception deserializing request!") from None
        finally:
            self._read_all = True
            self._turn.wake.set()

    async def _write_all(self) -> None:
        while True:
            self._turn.wake.clear()
            for answer in self._take():
                if answer.error and self._real_status:
                    raise answer.error
                await self._form.write(self._call, answer.message)
            if self._read_all and not self._slots:
                return
            await self._turn.wake.wait()

    def _take(self) -> Iterator[_Answer]:
        """Answers that may be sent now; frees the places of requests that are done."""
        while self._slots and (head := self._slots[0]).done:
            yield from head.taken()
            self._free(head)
        if self._turn.flowing:
            yield from self._flowing()

    def _flowing(self) -> Iterator[_Answer]:
        """The answers of requests that have several: these wait for no other request, nor does one wait for them."""
        waits = False
        for slot in tuple(self._slots):
            if slot.flows or not waits:
                yield from slot.taken()
            if slot.done and not slot.answers:
                self._free(slot)
            elif not slot.flows:
                waits = True

    def _free(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        self._turn.flowing -= slot.flows
        self._room.release()


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    """What goes over the wire, and the error it tells of, if any."""

    message: Any
    size_bytes: int = 0
    error: border.InferenceError | None = None


@dataclasses.dataclass(slots=True)
class _Turn:
    """Tells the writer that there is something to send; `flowing` counts requests of several answers."""

    wake: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    flowing: int = 0


class _Slot:
    """The place of one request in the order of answers; the request's reply."""

    __slots__ = (
        "_form",
        "_held_bytes",
        "_id",
        "_intake",
        "_keep_empty",
        "_request",
        "_turn",
        "_waiting_bytes",
        "answers",
        "done",
        "flows",
    )

    def __init__(self, intake: wire_intake.Intake, turn: _Turn, form: Form) -> None:
        self.answers: collections.deque[_Answer] = collections.deque()
        self.done = False
        self.flows = False
        self._waiting_bytes = 0
        self._intake = intake
        self._turn = turn
        self._form = form
        self._id = ""
        self._request: border.InferRequest | None = None
        self._held_bytes = 0
        self._keep_empty = False

    def submit(self, message: Any, rules: wire_rules.Rules, call: calls.Call) -> None:
        """What is refused becomes the answer. Raises protobuf's DecodeError alone."""
        try:
            request = self._form.decode(message, self)
        except border.InferenceError as error:
            self._id = self._form.identifier(message)
            self._end(error)
        else:
            self._submit(request, self._form.size_bytes(message), rules, call)

    def _submit(self, request: border.InferRequest, size_bytes: int, rules: wire_rules.Rules, call: calls.Call) -> None:
        self._id = request.id
        try:
            request.deadline_s = call.deadline_s
            if rules.trace_context:
                calls.within_span(request, call)
            request.parameters = rules.forwarding.add(request.parameters, calls.texts(call))
            self._keep_empty = request.parameters.get(parameters.EMPTY_FINAL_RESPONSE) is True
            claimed_bytes = rules.sharing.claim(request.inputs, request.outputs)
            self._hold(claimed_bytes + size_bytes)
            self._intake.submit(request)
            self._request = request
        except border.InferenceError as error:
            self._end(error)

    def give_up(self) -> None:
        if self._request is not None:
            self._request.cancel()

    def taken(self) -> Iterator[_Answer]:
        """The answers that there are, which are then the caller's."""
        while self.answers:
            answer = self.answers.popleft()
            self._waiting_bytes -= answer.size_bytes
            yield answer

    def __call__(self, answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
        if final:
            self._intake.finished()
        if self.done:
            return
        if final:
            self._end(answer)
        else:
            self._flow(answer)

    def _flow(self, answer: border.InferResponse | border.InferenceError) -> None:
        if not self.flows:
            self.flows = True
            self._turn.flowing += 1
        if self._waiting_bytes <= _MOST_WAITING_BYTES:
            self._add(answer, final=False)
            return
        self.give_up()
        words = f"the client reads too slowly: more than {_MOST_WAITING_BYTES} bytes of responses wait"
        self._end(border.InferenceError(border.ErrorKind.UNAVAILABLE, words))

    def _hold(self, size_bytes: int) -> None:
        if not self._intake.hold(size_bytes):
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, wire_intake.FULL)
        self._held_bytes = size_bytes

    def _end(self, answer: border.InferResponse | border.InferenceError) -> None:
        self._intake.let_go(self._held_bytes)
        self._held_bytes = 0
        self._request = None
        self.done = True
        empty = isinstance(answer, border.InferResponse) and not answer.outputs
        if self._keep_empty or not empty:
            self._add(answer, final=True)
        self._turn.wake.set()

    def _add(self, answer: border.InferResponse | border.InferenceError, *, final: bool) -> None:
        error = None
        size_bytes = 0
        if isinstance(answer, border.InferenceError):
            error = answer
            failure = predict_pb2.ModelStreamInferResponse(error_message=answer.message)
            failure.infer_response.id = self._id
            failure.infer_response.parameters[codec.FINAL].bool_param = final
            message = self._form.tell(failure)
        else:
            message = self._form.encode(answer, final=final)
            size_bytes = sum(len(tensor.data) for tensor in answer.outputs)
        self._waiting_bytes += size_bytes
        self.answers.append(_Answer(message, size_bytes, error))
        self._turn.wake.set()
