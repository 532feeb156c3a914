"""What a scheduler has counted by the time it answers, and that it answers whatever becomes of its instances."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from gpu_worker.engine import batching, border, pace, regions, scheduler, spec, statistics
from gpu_worker.runtime import port

MODEL = spec.ModelSpec(
    name="m",
    version="1",
    platform="",
    max_batch_size=0,
    inputs=(spec.TensorSpec("IN", "FP32", (1,)),),
    outputs=(spec.TensorSpec("OUT", "FP32", (1,)),),
    batching=batching.Config(),
)


class AtOnce(asyncio.SelectorEventLoop):
    """Answers arrive in the very moment they are posted."""

    def call_soon_threadsafe(  # type: ignore[override]  # the arguments are whatever the callback takes
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        callback(*args)
        return super().call_soon_threadsafe(lambda: None, context=context)


class Double(port.Program):
    inputs = outputs = ()
    shareable = True

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        return [feeds["IN"] * 2]


class Steady(Double):
    """Remembers in which threads it ran; `busy` makes runs that take long."""

    steady = True

    def __init__(self) -> None:
        self.ran_in: list[int] = []
        self.busy = False

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        self.ran_in.append(threading.get_ident())
        until_ns = time.thread_time_ns() + 2 * pace.BRIEF_NS
        while self.busy and time.thread_time_ns() < until_ns:
            pass
        return super().run(feeds, outputs)


@pytest.mark.parametrize("model", [MODEL, dataclasses.replace(MODEL, preserve_ordering=True)])
def test_who_is_answered_is_no_longer_in_flight(model: spec.ModelSpec) -> None:
    seen: list[statistics.Waiting] = []
    loop = AtOnce()
    serving = scheduler.Scheduler(model, [Double()], statistics.Statistics())

    def reply(answer: object, *, final: bool = True) -> None:
        assert final
        assert isinstance(answer, border.InferResponse)
        seen.append(serving.waiting())

    tensor = border.Tensor("IN", "FP32", (1,), np.ones(1, "<f4").tobytes())
    asked = [border.InferRequest("m", "", "r", [tensor], [], {}, reply) for _ in range(3)]
    try:
        serving.submit(asked, loop, time.monotonic_ns(), regions.Regions())
        serving.stop()
        assert serving.join(time.monotonic() + 60)
    finally:
        loop.close()
    assert seen == [statistics.Waiting(2, 2), statistics.Waiting(1, 1), statistics.Waiting(0, 0)]


@pytest.mark.parametrize(("deadline_s", "reason"), [(None, "CANCELED"), (0.0, "REJECTED"), (None, "")])
def test_a_request_is_counted_before_it_is_answered(deadline_s: float | None, reason: str) -> None:
    seen: list[border.ModelStatistics] = []
    counters = statistics.Statistics()

    def reply(answer: object, *, final: bool = True) -> None:
        assert final
        assert answer
        seen.append(counters.snapshot("m", "1", statistics.Waiting(), statistics.LoadCost()))

    tensor = border.Tensor("IN", "FP32", (1,), np.ones(1, "<f4").tobytes())
    asked = border.InferRequest("m", "", "r", [tensor], [], {}, reply, deadline_s, reason == "CANCELED")
    loop = AtOnce()
    try:
        serving = scheduler.Scheduler(MODEL, [Double()], counters)
        assert serving.submit([asked], loop, time.monotonic_ns(), regions.Regions()) == []
        serving.stop()
        assert serving.join(time.monotonic() + 60)
    finally:
        loop.close()
    (found,) = seen
    assert (found.success.count, found.fail.count) == ((0, 1) if reason else (1, 0))
    assert not reason or found.failures[reason] == 1


ORDERED = dataclasses.replace(MODEL, preserve_ordering=True)
DYNAMIC = dataclasses.replace(
    MODEL,
    max_batch_size=4,
    batching=batching.Config(max_batch_size=4, dynamic=True, preferred_sizes=frozenset({4}), max_delay_ns=1_000_000),
)


@hypothesis.given(
    model=strategies.sampled_from([MODEL, ORDERED, DYNAMIC]),
    made=strategies.sampled_from([Double, Steady]),
    steps=strategies.lists(
        strategies.one_of(
            strategies.lists(strategies.sampled_from(["a", "b"]), min_size=1, max_size=4),
            strategies.lists(strategies.sampled_from(["a", "b"]), min_size=1, max_size=4).map(tuple),
            strategies.integers(1, 20),
        ),
        max_size=12,
    ),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_no_request_is_lost_whatever_becomes_of_the_instances(
    model: spec.ModelSpec, made: type[Double], steps: list[list[str] | tuple[str, ...] | int]
) -> None:
    programs = {"a": made(), "b": made()}
    answers: list[int] = []
    loop = AtOnce()
    serving = scheduler.Scheduler(model, [programs["a"]], statistics.Statistics())
    asked = 0
    try:
        for step in steps:
            if isinstance(step, list):
                serving.settle(serving.prepare([programs[name] for name in step]))
                continue
            if isinstance(step, tuple):
                serving.drop(serving.prepare([programs[name] for name in step]))
                continue
            requests = [_request(model, asked + index, answers) for index in range(step)]
            assert serving.submit(requests, loop, time.monotonic_ns(), regions.Regions()) == []
            asked += step
        serving.stop()
        assert serving.join(time.monotonic() + 60)
        serving.settle(serving.prepare(list(programs.values())))
        assert serving.join(time.monotonic() + 60), "what is stopped does not begin again"
    finally:
        loop.close()
    assert sorted(answers) == list(range(asked))
    if model is ORDERED:
        assert answers == sorted(answers)
    assert serving.waiting() == statistics.Waiting()
    alive = [weakref.ref(program) for program in programs.values()]
    programs.clear()
    gc.collect()
    assert [program() for program in alive] == [None, None], "nothing holds a program that serves no more"


def _request(model: spec.ModelSpec, number: int, answers: list[int]) -> border.InferRequest:
    def reply(answer: object, *, final: bool = True) -> None:
        assert final
        assert isinstance(answer, border.InferResponse), answer
        (value,) = np.frombuffer(answer.outputs[0].data, "<f4")
        assert value == 2 * number
        answers.append(number)

    shape = (1, 1) if model.max_batch_size else (1,)
    tensor = border.Tensor("IN", "FP32", shape, np.array([number], "<f4").tobytes())
    return border.InferRequest("m", "", "r", [tensor], [], {}, reply)


class Serving:
    """A scheduler of one program, asked one request at a time from this thread."""

    def __init__(self, model: spec.ModelSpec, program: port.Program) -> None:
        self._model = model
        self._loop = AtOnce()
        self._scheduler = scheduler.Scheduler(model, [program], statistics.Statistics())
        self._answers: list[int] = []
        self.asked = 0

    def ask(self, outputs: Sequence[border.RequestedOutput] = ()) -> None:
        answered = threading.Event()
        request = _request(self._model, self.asked, self._answers)
        request.outputs = list(outputs)
        reply = request.reply

        def told(answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
            if outputs:
                assert isinstance(answer, border.InferResponse)
                self._answers.append(self.asked - 1)
            else:
                reply(answer, final=final)
            answered.set()

        request.reply = told
        self.asked += 1
        assert self._scheduler.submit([request], self._loop, time.monotonic_ns(), regions.Regions()) == []
        assert answered.wait(60)

    def end(self) -> None:
        self._scheduler.stop()
        assert self._scheduler.join(time.monotonic() + 60)
        self._loop.close()
        assert self._answers == list(range(self.asked))


# How often the thread may still be on its way back to its queue when the next request comes.
_TRIES = 100_000


def _asked_until(serving: Serving, program: Steady, *, here: bool) -> None:
    for _ in range(_TRIES):
        serving.ask()
        if (program.ran_in[-1] == threading.get_ident()) is here:
            return
    raise AssertionError(f"never ran {'on the loop' if here else 'in a thread'}")


@pytest.mark.parametrize("model", [MODEL, ORDERED])
def test_brief_batches_of_a_steady_program_run_on_the_loop_until_they_are_no_more(model: spec.ModelSpec) -> None:
    program = Steady()
    serving = Serving(model, program)
    for _ in range(4):
        serving.ask()
    assert threading.get_ident() not in program.ran_in, "nothing is known yet"
    _asked_until(serving, program, here=True)
    program.busy = True
    _asked_until(serving, program, here=True)
    for _ in range(20):
        serving.ask()
    assert threading.get_ident() not in program.ran_in[-20:], "one that took long is enough"
    program.busy = False
    _asked_until(serving, program, here=True)
    serving.end()


@pytest.mark.parametrize(
    ("model", "steady", "shareable"),
    [
        (MODEL, False, True),
        (MODEL, True, False),
        (dataclasses.replace(MODEL, outputs=(spec.TensorSpec("OUT", "FP32", (1,), source="IN"),)), True, True),
    ],
)
def test_what_may_take_long_never_runs_on_the_loop(model: spec.ModelSpec, *, steady: bool, shareable: bool) -> None:
    program = Steady()
    program.steady, program.shareable = steady, shareable
    serving = Serving(model, program)
    for _ in range(50):
        serving.ask()
    assert threading.get_ident() not in program.ran_in
    serving.end()


def test_classes_are_never_made_on_the_loop() -> None:
    program = Steady()
    serving = Serving(MODEL, program)
    _asked_until(serving, program, here=True)
    for _ in range(50):
        serving.ask([border.RequestedOutput("OUT", classification=1)])
        assert program.ran_in[-1] != threading.get_ident()
    _asked_until(serving, program, here=True)
    serving.end()
