"""The scheduler of an ensemble: hands the steps of each request to the schedulers of the composing models.

A thin shell around `flow`, with the methods of every scheduler; all but `join` belong to one event loop. The versions that
steps ask are chosen when a request comes, and held until its last step has ended. What becomes ready in one turn of the
loop goes on together, so that composing models batch it. The first step that fails ends its request.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from gpu_worker.engine import (
    border,
    classification,
    crew,
    delivery,
    flow,
    graph,
    holds,
    regions,
    running,
    serving,
    spec,
    statistics,
    tensors,
    trace,
    tracing,
    validation,
    work,
)
from gpu_worker.runtime import port

log = structlog.get_logger(__name__)

_NO_REGIONS = regions.Regions()
_NO_SEQUENCE: Mapping[str, border.Parameter] = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
_MOST_PLANS = 1024


class Composing(Protocol):
    """A version that serves a step."""

    @property
    def spec(self) -> spec.ModelSpec: ...

    @property
    def scheduler(self) -> serving.Scheduler: ...

    @property
    def holds(self) -> holds.Holds: ...


Find = Callable[[str, str], Composing]
"""The version of a model that serves now; raises InferenceError where none does."""


@dataclasses.dataclass(slots=True)
class _Held:
    """A tensor between steps; `size` is the batch that it is of, 0 where it is of none."""

    tensor: border.Tensor
    size: int


@dataclasses.dataclass(slots=True, kw_only=True)
class _Request(border.InferRequest):
    """A request to a composing model of `size` items, 0 where it has no batch.

    `parent` is the trace of the ensemble's request, `trace` gets its own.
    """

    size: int = 0
    parent: trace.Trace | None = None
    trace: trace.Trace | None = None


class _Tracer:
    """The tracer of the steps: each has a trace, if only to tell how long it took."""

    on = True

    def __init__(self, outer: tracing.Tracer) -> None:
        self._outer = outer

    def begin(self, model: spec.ModelSpec, each: work.Work) -> None:
        request = each.request
        if not isinstance(request, _Request):
            return
        if request.parent is not None and request.parent.told:
            self._outer.child(request.parent, model, each)
        if each.trace is None:
            each.trace = trace.silent(model.name, model.version)
        request.trace = each.trace

    def child(self, parent: trace.Trace, model: spec.ModelSpec, each: work.Work) -> None:
        self._outer.child(parent, model, each)


class Ensemble:
    """Serves one version of an ensemble from its making until `stop`."""

    def __init__(self, model: spec.ModelSpec, steps: graph.Graph, find: Find, counters: statistics.Statistics) -> None:
        self.spec = model
        self.graph = steps
        self._find = find
        self._counters = counters
        self._runner = running.Runner(model, counters)
        self._plans: dict[tuple[str, ...], graph.Plan] = {}
        self._runs: set[_Run] = set()
        self._ready: list[tuple[Composing, _Request, _Tracer]] = []
        self._flushing = False
        self._closing = False
        self._ended = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(
        self,
        requests: Iterable[border.InferRequest],
        loop: asyncio.AbstractEventLoop,
        arrival_ns: int,
        shared: regions.Regions,
        tracer: tracing.Tracer = tracing.NOBODY,
    ) -> list[delivery.Answered]:
        works, refused = self._runner.admit(requests, loop, arrival_ns, shared, tracer)
        if self._closing:
            return refused + [(each.request.reply, running.stopping()) for each in works]
        steps = _Tracer(tracer)
        for each in works:
            self._begin(each, steps)
        self._flush(loop)
        return refused

    def prepare(self, programs: Sequence[port.Program]) -> crew.Change:
        """Nothing: an ensemble has no instances."""
        del programs
        return crew.Change((), ())

    def drop(self, change: crew.Change) -> None:
        """Nothing was prepared."""

    def settle(self, change: crew.Change) -> None:
        """Nothing changes."""

    @property
    def available(self) -> bool:
        """What its steps cannot do they say themselves."""
        return True

    def waiting(self) -> statistics.Waiting:
        """Nothing waits here: a request counts as executing while its steps wait."""
        return statistics.Waiting(0, len(self._runs))

    def stop(self) -> None:
        self._closing = True
        self._close()

    def abandon(self) -> None:
        self._closing = True
        for run in tuple(self._runs):
            run.fail(running.stopping())
        self._close()

    def join(self, until_s: float) -> bool:
        return self._ended.wait(max(0.0, until_s - time.monotonic()))

    def _begin(self, each: work.Work, tracer: _Tracer) -> None:
        run = _Run(self, each, self._plan(each.outputs), tracer)
        self._runs.add(run)
        try:
            run.hold({key: self._find(*key) for key in self.graph.models})
        except border.InferenceError as error:
            run.fail(run.within(error))
            return
        if each.shared_inputs:
            self.later(run.read())
        else:
            run.start()

    def _plan(self, outputs: tuple[border.RequestedOutput, ...] | None) -> graph.Plan:
        names = tuple(self.spec.outputs_by_name) if outputs is None else tuple([each.name for each in outputs])
        found = self._plans.get(names)
        if found is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            found = self._plans[names] = self.graph.plan(names)
        return found

    def later(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Lets something go on that needs a thread."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def enqueue(self, to: Composing, request: _Request, tracer: _Tracer, loop: asyncio.AbstractEventLoop) -> None:
        """Hands a step on, with all that becomes ready in this turn of the loop."""
        self._ready.append((to, request, tracer))
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Submits what is ready. It may make more ready, which is for the next turn."""
        self._flushing = False
        ready, self._ready = self._ready, []
        if len(ready) == 1:
            ((to, request, tracer),) = ready
            delivery.deliver(to.scheduler.submit([request], loop, time.monotonic_ns(), _NO_REGIONS, tracer))
            return
        by_target: dict[tuple[int, int], tuple[Composing, _Tracer, list[_Request]]] = {}
        for to, request, tracer in ready:
            by_target.setdefault((id(to), id(tracer)), (to, tracer, []))[2].append(request)
        for to, tracer, requests in by_target.values():
            refused = to.scheduler.submit(requests, loop, time.monotonic_ns(), _NO_REGIONS, tracer)
            delivery.deliver(refused)

    def ended(self, run: _Run, error: border.InferenceError | None) -> None:
        """Counts a request that is about to be answered: who has an answer finds it in the statistics."""
        self._runs.discard(run)
        life_ns = time.monotonic_ns() - run.work.arrival_ns
        if error is None:
            waited_ns = run.started_ns - run.work.arrival_ns
            done = statistics.Executed(
                items=run.work.size, waits_ns=[waited_ns], lives_ns=[life_ns], timings=run.timings
            )
            self._counters.executed(done)
        else:
            cancelled = error.kind is border.ErrorKind.CANCELLED
            self._counters.failed(statistics.CANCELED if cancelled else statistics.OTHER, 1, life_ns)
        self._close()

    def _close(self) -> None:
        if self._closing and not self._runs:
            self._ended.set()


class _Run:
    """One request on its way."""

    def __init__(self, owner: Ensemble, each: work.Work, plan: graph.Plan, tracer: _Tracer) -> None:
        self.work = each
        self.started_ns = time.monotonic_ns()
        self.timings = statistics.Timings()
        self._owner = owner
        self._plan = plan
        self._flow: flow.Flow[_Held] = flow.Flow(plan)
        self._tracer = tracer
        self._models: Mapping[tuple[str, str], Composing] = {}
        self._asked: dict[int, _Request] = {}
        self._over = False
        each.request.on_cancel = self.cancel

    def hold(self, models: Mapping[tuple[str, str], Composing]) -> None:
        """The versions that its steps ask; they stay until the last of these has ended."""
        self._models = models
        for model in models.values():
            model.holds.take()

    async def read(self) -> None:
        """Copies what lies in shared memory, then starts."""
        parts = self.work.shared_inputs
        try:
            self.work.copied = await asyncio.to_thread(lambda: {index: part.read() for index, part in parts.items()})
        except Exception as error:  # noqa: BLE001 - whatever the memory does, the request is answered
            self._broken(error)
            return
        self.start()

    def start(self) -> None:
        try:
            given = [self._given(index, tensor) for index, tensor in enumerate(self._owner.spec.inputs)]
            # From here on each tensor is kept for as long as a step needs it.
            self.work.inputs, self.work.copied, self.work.request.inputs = (), None, []
            self._go_on(self._flow.put(given))
        except Exception as error:  # noqa: BLE001 - whatever a request holds, it is answered
            self._broken(error)

    def cancel(self) -> None:
        """Nobody waits for the answer any more: steps that wait do not run."""
        for request in tuple(self._asked.values()):
            request.cancel()

    def fail(self, error: border.InferenceError) -> None:
        """Answers with the first error; what still runs is given up."""
        if self._over:
            return
        self._over = True
        self._owner.ended(self, error)
        reply = self.work.request.reply
        self.cancel()
        self._release()
        self._flow = flow.Flow(self._plan)
        delivery.deliver([(reply, error)])

    def _broken(self, error: Exception) -> None:
        if not isinstance(error, border.InferenceError):
            log.warning("ensemble.broken", model=self._owner.spec.name, reason=repr(error))
            error = border.InferenceError(border.ErrorKind.INTERNAL, str(error))
        self.fail(validation.with_id(error, self.work.request.id))

    def answered(self, step: int, answer: delivery.Answer, *, final: bool = True) -> None:
        """What a composing model says to a step."""
        if not final:
            return
        request = self._asked.pop(step)
        if self._over:
            self._release()
        elif isinstance(answer, border.InferenceError):
            self.fail(self.within(answer))
        else:
            self._heard(request)
            there = {tensor.name: _Held(tensor, request.size) for tensor in answer.outputs}
            try:
                self._go_on(self._flow.put([(name, there.get(inner)) for inner, name in self._plan.makes[step]]))
            except Exception as error:  # noqa: BLE001 - whatever a model makes, its request is answered
                self._broken(error)

    def _go_on(self, ready: Sequence[int]) -> None:
        request = self.work.request
        if request.cancelled:
            self.fail(self.within(validation.with_id(_cancelled(), request.id)))
            return
        for step in ready:
            self._ask(step)
        if self._flow.complete:
            if self.work.trace is None:
                self._finish()
            else:
                # The traces of the steps end before that of the whole.
                self.work.loop.call_soon(self._finish)

    def _ask(self, index: int) -> None:
        step = self._owner.graph.steps[index]
        to = self._models[step.model, step.version]
        taken = self._flow.take(index)
        inputs = [_inward(to.spec, inner, held) for inner, name in step.inputs if (held := taken[name]) is not None]
        mine, asks = self.work.request, self._plan.asks[index]
        request = _Request(
            model=to.spec.name,
            version=to.spec.version,
            id=mine.id,
            inputs=inputs,
            # All of them are less to look at than each by its name.
            outputs=[] if len(asks) == len(to.spec.outputs) else asks,
            parameters=mine.parameters,
            reply=functools.partial(self.answered, index),
            deadline_s=mine.deadline_s,
            size=(inputs[0].shape[0] if inputs and inputs[0].shape else 1) if to.spec.max_batch_size else 0,
            parent=self.work.trace,
        )
        self._asked[index] = request
        self._owner.enqueue(to, request, self._tracer, self.work.loop)

    def _heard(self, request: _Request) -> None:
        """An ensemble computes for as long as its steps together."""
        if request.trace is not None and (taken := request.trace.timings) is not None:
            self.timings.input_ns += taken.input_ns
            self.timings.infer_ns += taken.infer_ns
            self.timings.output_ns += taken.output_ns

    def _finish(self) -> None:
        if self._over:
            return
        try:
            outputs = self._outputs(self._flow.answer())
        except Exception as error:  # noqa: BLE001 - the same
            self._broken(error)
            return
        if self.work.shared_outputs:
            self._owner.later(self._write(outputs))
        else:
            self._answer(outputs)

    async def _write(self, outputs: list[border.Tensor]) -> None:
        """Writes to shared memory what goes there, then answers."""
        targets = self.work.shared_outputs
        try:
            outputs = await asyncio.to_thread(
                lambda: [_written(tensor, targets.get(tensor.name)) for tensor in outputs]
            )
        except Exception as error:  # noqa: BLE001 - the same
            self._broken(error)
            return
        self._answer(outputs)

    def _answer(self, outputs: list[border.Tensor]) -> None:
        if self._over:
            return
        self._over = True
        each, model = self.work, self._owner.spec
        if each.trace is not None:
            each.trace.timings = self.timings
        self._owner.ended(self, None)
        self._release()
        parameters = _sequence(each.request.parameters)
        answer = border.InferResponse(model.name, model.version, each.request.id, outputs, parameters)
        delivery.deliver([(each.request.reply, answer)])

    def _release(self) -> None:
        """Lets go of the versions once none of them has anything of this request."""
        self.work.request.on_cancel = None
        if not self._asked:
            for model in self._models.values():
                model.holds.give()
            self._models = {}

    def _given(self, index: int, tensor: spec.TensorSpec) -> tuple[str, _Held | None]:
        """An input of the ensemble, in the shape that its steps see; None where it was left out."""
        given = self.work.inputs[index]
        if given is None:
            return tensor.name, None
        batched = bool(self._owner.spec.max_batch_size)
        shape = given.shape
        if tensor.reshape is not None:
            shape = (*shape[:batched], *tensor.inward(shape[batched:]))
        inner = border.Tensor(tensor.name, given.datatype, shape, self.work.bytes_of(index))
        return tensor.name, _Held(inner, self.work.size if batched else 0)

    def _outputs(self, made: Mapping[str, _Held | None]) -> list[border.Tensor]:
        asked = self.work.outputs or [border.RequestedOutput(name) for name in made]
        return [self._output(each, held) for each in asked if (held := made[each.name]) is not None]

    def _output(self, asked: border.RequestedOutput, held: _Held) -> border.Tensor:
        model = self._owner.spec
        declared = model.outputs_by_name[asked.name]
        batched = bool(model.max_batch_size)
        dims = declared.dims if declared.reshape is None else declared.reshape
        shape = _shaped(dims, held, batched=batched)
        if declared.reshape is not None:
            outward = declared.outward(shape[batched:])
            if outward is None:
                told = f"output '{asked.name}' has shape {list(shape)}, but its reshape is {list(dims)}"
                raise border.InferenceError(border.ErrorKind.INTERNAL, told)
            shape = (*shape[:batched], *outward)
        tensor = border.Tensor(asked.name, held.tensor.datatype, shape, held.tensor.data)
        if not asked.classification:
            return tensor
        array = tensors.view(tensor.data, declared.type, shape)
        found = classification.best(array, asked.classification, self._labels(declared), batched=batched)
        return border.Tensor(asked.name, "BYTES", found.shape, tensors.encode_bytes(found))

    def _labels(self, declared: spec.TensorSpec) -> Sequence[str]:
        """The ensemble's own, else those of the model that made the output."""
        maker = self._owner.graph.makers.get(declared.name)
        if declared.labels or maker is None:
            return declared.labels
        step = self._owner.graph.steps[maker]
        inner = next(inner for inner, name in step.outputs if name == declared.name)
        return self._models[step.model, step.version].spec.outputs_by_name[inner].labels

    def within(self, error: border.InferenceError) -> border.InferenceError:
        return border.InferenceError(error.kind, f"in ensemble '{self._owner.spec.name}', {error.message}")


def _inward(model: spec.ModelSpec, name: str, held: _Held) -> border.Tensor:
    """The tensor as this input of a composing model."""
    tensor = held.tensor
    shape = _shaped(model.inputs_by_name[name].dims, held, batched=bool(model.max_batch_size))
    return border.Tensor(name, tensor.datatype, shape, tensor.data)


def _shaped(dims: Sequence[int], held: _Held, *, batched: bool) -> tuple[int, ...]:
    """The tensor's shape where `dims` are wanted: a batch of one comes or goes between models that batch and others."""
    shape = held.tensor.shape
    if batched == bool(held.size):
        return shape
    fits = graph.fits(dims, shape)
    if batched:
        return (1, *shape) if fits else shape
    return shape[1:] if not fits and held.size == 1 else shape


def _written(tensor: border.Tensor, target: regions.Part | None) -> border.Tensor:
    if target is None:
        return tensor
    target.write(tensor.name, tensor.data)
    return border.Tensor(tensor.name, tensor.datatype, tensor.shape, b"", target.place)


def _sequence(parameters: Mapping[str, border.Parameter]) -> Mapping[str, border.Parameter]:
    """What Triton tells with each answer of an ensemble, whether it is of a sequence or not."""
    if "sequence_id" not in parameters:
        return _NO_SEQUENCE
    return {key: parameters.get(key, default) for key, default in _NO_SEQUENCE.items()}


def _cancelled() -> border.InferenceError:
    return border.InferenceError(border.ErrorKind.CANCELLED, "request has been cancelled")
