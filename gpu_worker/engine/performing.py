"""Batches of programs that take requests as they are and answer each one: maybe often, maybe after the batch.

Decides what such a response becomes for the client, and when a request counts as done. Must never answer a request
again that has had its last response, nor copy a tensor that is not wanted otherwise.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from gpu_worker.engine import border, classification, delivery, spec, statistics, tensors, trace, validation, work
from gpu_worker.runtime import port

Pairs = list[tuple[work.Work, delivery.Answer]]

_OURS = frozenset({"binary_data_output", "triton_enable_empty_final_response"})


Late = Callable[[work.Work, delivery.Answer, bool], None]
"""Takes a response beside those of the batch; true where it is the request's last."""


class Query:
    """One request, as the program sees it."""

    __slots__ = ("_batch", "done", "inputs", "outputs", "work")

    def __init__(self, batch: Batch, each: work.Work) -> None:
        self._batch = batch
        self.work = each
        self.done = False
        self.inputs = _inputs(each)
        every = batch.model.outputs_by_name
        self.outputs = list(every) if each.outputs is None else [output.name for output in each.outputs]

    @property
    def id(self) -> str:
        return self.work.request.id

    @property
    def parameters(self) -> Mapping[str, border.Parameter]:
        given = self.work.request.parameters
        return {name: value for name, value in given.items() if name not in _OURS} if given else given

    def heed(self, cancel: Callable[[], None] | None) -> None:
        request = self.work.request
        request.on_cancel = cancel
        if cancel is not None and request.cancelled:
            # A request is cancelled on its event loop, and so is this to be called.
            self.work.loop.call_soon_threadsafe(cancel)

    def answer(self, response: port.Response | None, *, final: bool) -> None:
        self._batch.answer(self, response, final=final)


class Batch:
    """One batch, from its beginning until the last of its requests is done."""

    def __init__(
        self, model: spec.ModelSpec, works: Sequence[work.Work], counters: statistics.Statistics, late: Late
    ) -> None:
        self.model = model
        self._counters = counters
        self._late = late
        self._timings = statistics.Timings()
        self._started_ns = time.monotonic_ns()
        self._queries: list[Query] = []
        self._refused: Pairs = []
        for each in works:
            try:
                self._queries.append(Query(self, each))
            except border.InferenceError as error:
                self._refused.append((each, validation.with_id(error, each.request.id)))

    def run(self, program: port.Performer) -> Pairs:
        """Blocks until the program may be given the next batch; the last answers that there are by then."""
        if self._queries:
            over = threading.Event()
            found: list[port.Performed] = []

            def done(performed: port.Performed) -> None:
                found.append(performed)
                over.set()

            begun_ns = time.monotonic_ns()
            program.perform(self._queries, done)
            over.wait()
            return self._finished(self._refused) + self._ended(found[0], begun_ns)
        return self._finished(self._refused)

    def answer(self, query: Query, response: port.Response | None, *, final: bool) -> None:
        """A response beside those of the batch."""
        if query.done:
            return
        answer = self._answer(query, response)
        query.done = final
        if final:
            self._finished([(query.work, answer)])
        self._late(query.work, answer, final)

    def _ended(self, performed: port.Performed, begun_ns: int) -> Pairs:
        now_ns = time.monotonic_ns()
        self._timings = statistics.Timings(begun_ns - self._started_ns, now_ns - begun_ns)
        responses = performed.responses if performed.failure is None else [performed.failure] * len(self._queries)
        answered: Pairs = []
        for query, response in zip(self._queries, responses, strict=True):
            if response is not None and not query.done:
                query.done = True
                answered.append((query.work, self._answer(query, response)))
        self._timings.output_ns = time.monotonic_ns() - now_ns
        if performed.failure is None:
            items = sum(query.work.size for query in self._queries)
            self._counters.executed(statistics.Executed(items=items, waits_ns=[], lives_ns=[], timings=self._timings))
        return self._finished(answered)

    def _finished(self, answered: Pairs) -> Pairs:
        """Counted before they are answered: who has an answer finds it in the statistics."""
        now_ns = time.monotonic_ns()
        served = [each for each, answer in answered if isinstance(answer, border.InferResponse)]
        failed = [each for each, answer in answered if not isinstance(answer, border.InferResponse)]
        if served:
            waits_ns = [self._started_ns - each.arrival_ns for each in served]
            lives_ns = [now_ns - each.arrival_ns for each in served]
            self._counters.served(waits_ns, lives_ns, self._timings)
        if failed:
            self._counters.failed(statistics.BACKEND, len(failed), sum(now_ns - each.arrival_ns for each in failed))
        for each, answer in answered:
            if each.trace is not None:
                _note(each.trace, each, answer, self._started_ns, self._timings)
        return answered

    def _answer(self, query: Query, response: port.Response | None) -> delivery.Answer:
        request = query.work.request
        if isinstance(response, port.Refused):
            return border.InferenceError(border.ErrorKind(response.kind), response.message)
        try:
            outputs = [] if response is None else [self._output(query.work, each) for each in response.tensors]
        except border.InferenceError as error:
            return validation.with_id(error, request.id)
        parameters = response.parameters if response is not None else border.NO_PARAMETERS
        # What only says that it was all has no version in Triton either.
        version = self.model.version if response is not None else ""
        return border.InferResponse(self.model.name, version, request.id, outputs, parameters)

    def _output(self, each: work.Work, given: port.Given) -> border.Tensor:
        """The output as it was asked for; one that goes to shared memory is there afterwards."""
        found = border.Tensor(given.name, given.datatype, given.shape, given.data)
        _check(found)
        wanted = next((output for output in each.outputs or () if output.name == given.name), None)
        if wanted is None:
            return found
        if wanted.classification:
            return self._classes(found, wanted.classification)
        target = each.shared_outputs.get(given.name)
        if target is None:
            return found
        target.write(found.name, found.data)
        return border.Tensor(found.name, found.datatype, found.shape, b"", target.place)

    def _classes(self, found: border.Tensor, count: int) -> border.Tensor:
        array = tensors.view(found.data, tensors.DATATYPES[found.datatype], found.shape)
        labels = self.model.outputs_by_name[found.name].labels
        best = classification.best(array, count, labels, batched=bool(self.model.max_batch_size))
        return border.Tensor(found.name, "BYTES", best.shape, tensors.encode_bytes(best))


class _Trial:
    """A request of nobody."""

    def __init__(self, model: spec.ModelSpec, feeds: Mapping[str, tensors.Array]) -> None:
        self.id = ""
        self.parameters: Mapping[str, border.Parameter] = border.NO_PARAMETERS
        self.outputs = list(model.outputs_by_name)
        self.inputs = [
            border.Tensor(name, model.inputs_by_name[name].datatype, array.shape, tensors.to_wire(array))
            for name, array in feeds.items()
        ]
        self.over = threading.Event()
        self.failure = ""

    def heed(self, cancel: Callable[[], None] | None) -> None:
        """Nobody cancels it."""

    def done(self, performed: port.Performed) -> None:
        if performed.failure is not None:
            self.answer(performed.failure, final=True)
        for response in performed.responses:
            if response is not None:
                self.answer(response, final=True)

    def answer(self, response: port.Response | None, *, final: bool) -> None:
        if isinstance(response, port.Refused):
            self.failure = response.message
        if final:
            self.over.set()


def try_out(program: port.Performer, model: spec.ModelSpec, feeds: Mapping[str, tensors.Array]) -> None:
    """Lets the program answer one request, to the last response. Raises RunFailed with what it refuses it for."""
    trial = _Trial(model, feeds)
    program.perform([trial], trial.done)
    trial.over.wait()
    if trial.failure:
        raise port.RunFailed(trial.failure)


def _inputs(each: work.Work) -> list[border.Tensor]:
    """What was given; what lay in shared memory is copied from there."""
    if each.shared_inputs:
        each.copied = {index: part.read() for index, part in each.shared_inputs.items()}
    return [
        dataclasses.replace(tensor, data=each.bytes_of(index), region=None) if tensor.region is not None else tensor
        for index, tensor in enumerate(each.inputs)
        if tensor is not None
    ]


def _check(found: border.Tensor) -> None:
    """What a program says of a tensor is not to be believed. Raises InferenceError."""
    known = tensors.DATATYPES.get(found.datatype)
    try:
        count = tensors.element_count(found.shape)
    except ValueError as error:
        raise _wrong(found, str(error)) from None
    if known is None:
        raise _wrong(found, f"datatype {found.datatype} is unknown")
    if known.item_bytes and tensors.size_bytes(found.data) != count * known.item_bytes:
        raise _wrong(found, f"{tensors.size_bytes(found.data)} bytes are not {count} elements of {found.datatype}")


def _wrong(found: border.Tensor, why: str) -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.INTERNAL, f"output '{found.name}' of the model is malformed: {why}")


def _note(
    found: trace.Trace, each: work.Work, answer: delivery.Answer, started_ns: int, timings: statistics.Timings
) -> None:
    """What a trace tells of an execution."""
    found.computed(started_ns, timings)
    found.show("TENSOR_BACKEND_INPUT", filter(None, each.inputs))
    if isinstance(answer, border.InferResponse):
        found.show("TENSOR_BACKEND_OUTPUT", answer.outputs)


def deliver(each: work.Work, answer: delivery.Answer, final: bool) -> None:  # noqa: FBT001 - as `Late`
    """One response, from the event loop of the request or any thread."""
    reply = each.request.reply
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is each.loop:
        _reply(reply, answer, final=final)
    else:
        each.loop.call_soon_threadsafe(functools.partial(_reply, reply, answer, final=final))


def _reply(reply: border.Reply, answer: delivery.Answer, *, final: bool) -> None:
    if final:
        delivery.deliver([(reply, answer)])
    else:
        delivery.tell(reply, answer)
