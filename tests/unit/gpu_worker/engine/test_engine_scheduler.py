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

from gpu_worker.engine import batching, border, regions, scheduler, spec, statistics
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
    steps=strategies.lists(
        strategies.one_of(
            strategies.lists(strategies.sampled_from(["a", "b"]), min_size=1, max_size=4),
            strategies.integers(1, 20),
        ),
        max_size=12,
    ),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_no_request_is_lost_whatever_becomes_of_the_instances(
    model: spec.ModelSpec, steps: list[list[str] | int]
) -> None:
    programs = {"a": Double(), "b": Double()}
    answers: list[int] = []
    loop = AtOnce()
    serving = scheduler.Scheduler(model, [programs["a"]], statistics.Statistics())
    asked = 0
    try:
        for step in steps:
            if isinstance(step, list):
                serving.resize([programs[name] for name in step])
                continue
            requests = [_request(model, asked + index, answers) for index in range(step)]
            assert serving.submit(requests, loop, time.monotonic_ns(), regions.Regions()) == []
            asked += step
        serving.stop()
        assert serving.join(time.monotonic() + 60)
        serving.resize(list(programs.values()))
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


def test_threads_that_cannot_be_had_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    left = 1

    def refusing(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    loop = AtOnce()
    answers: list[int] = []
    serving = scheduler.Scheduler(MODEL, [Double()] * 3, statistics.Statistics())
    serving.resize([Double()])
    try:
        assert serving.submit([_request(MODEL, 7, answers)], loop, time.monotonic_ns(), regions.Regions()) == []
        serving.stop()
        assert serving.join(time.monotonic() + 60)
    finally:
        loop.close()
    assert answers == [7]
    with pytest.raises(RuntimeError, match="can't start new thread"):
        scheduler.Scheduler(MODEL, [Double()], statistics.Statistics())
