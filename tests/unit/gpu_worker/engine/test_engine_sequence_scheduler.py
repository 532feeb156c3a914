"""A scheduler of sequences under changes of its instances and an end at any time: every request is answered once."""

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

from gpu_worker.engine import batching, border, controls, regions, sequence_scheduler, sequences, spec, statistics
from gpu_worker.runtime import port

STATE = controls.State("SUM_IN", "SUM_OUT", np.zeros((1, 1), "<f4"))
POLICY = sequences.Config(slots=2, max_idle_ns=60 * 10**9, fresh=controls.fresh([STATE]))
DIRECT = spec.ModelSpec(
    name="m",
    version="1",
    platform="",
    max_batch_size=2,
    inputs=(spec.TensorSpec("IN", "FP32", (1,)),),
    outputs=(spec.TensorSpec("OUT", "FP32", (1,)),),
    batching=batching.Config(),
    sequencing=controls.Sequencing(POLICY, states=(STATE,)),
)
OLDEST = dataclasses.replace(
    DIRECT,
    preserve_ordering=True,
    sequencing=controls.Sequencing(
        dataclasses.replace(POLICY, direct=False, slots=3, batching=batching.Config(2, dynamic=True)), states=(STATE,)
    ),
)


class AtOnce(asyncio.SelectorEventLoop):
    """Answers arrive in the very moment they are posted."""

    def call_soon_threadsafe(  # type: ignore[override]  # the arguments are whatever the callback takes
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        callback(*args)
        return super().call_soon_threadsafe(lambda: None, context=context)


class Sums(port.Program):
    inputs = outputs = ()
    shareable = True

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        total = feeds["SUM_IN"] + feeds["IN"]
        return [total.copy() for _ in outputs]


class Broken(Sums):
    """Gives a state of the wrong size."""

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        return [
            array if name == "OUT" else np.zeros((7, 1))
            for name, array in zip(outputs, super().run(feeds, outputs), strict=True)
        ]


class Clients:
    """Ask a scheduler, and remember what each was answered, in order."""

    def __init__(self, model: spec.ModelSpec, programs: Sequence[port.Program]) -> None:
        self.loop = AtOnce()
        self.counters = statistics.Statistics()
        self.scheduler = sequence_scheduler.SequenceScheduler(model, programs, self.counters)
        self.answers: dict[tuple[int, int], list[object]] = {}
        self.lock = threading.Lock()

    def request(self, name: int, number: int, *bounds: str, **more: Any) -> border.InferRequest:
        def reply(answer: object, *, final: bool = True) -> None:
            assert final
            with self.lock:
                self.answers.setdefault((name, number), []).append(answer)

        tensor = border.Tensor("IN", "FP32", (1, 1), np.array([1], "<f4").tobytes())
        parameters = {"sequence_id": name, **{f"sequence_{each}": True for each in bounds}}
        return border.InferRequest("m", "", "r", [tensor], [], {**parameters, **more}, reply)

    def submit(self, *requests: border.InferRequest) -> None:
        for reply, answer in self.scheduler.submit(requests, self.loop, time.monotonic_ns(), regions.Regions()):
            reply(answer)

    def resize(self, programs: Sequence[port.Program]) -> None:
        self.scheduler.settle(self.scheduler.prepare(programs))

    def end(self) -> None:
        self.scheduler.stop()
        assert self.scheduler.join(time.monotonic() + 60)
        self.loop.close()


def value(answer: object) -> float:
    assert isinstance(answer, border.InferResponse), answer
    return float(np.frombuffer(answer.outputs[0].data, "<f4")[0])


@hypothesis.given(
    model=strategies.sampled_from([DIRECT, OLDEST]),
    steps=strategies.lists(
        strategies.one_of(
            strategies.lists(strategies.sampled_from(["a", "b", "c"]), min_size=1, max_size=3),
            strategies.lists(strategies.integers(1, 6), min_size=1, max_size=8),
        ),
        max_size=12,
    ),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_states_and_requests_outlive_changes_of_the_instances(
    model: spec.ModelSpec, steps: list[list[str] | list[int]]
) -> None:
    programs = {name: Sums() for name in "abc"}
    clients = Clients(model, [programs["a"]])
    asked: dict[int, int] = {}
    for step in steps:
        names = [each for each in step if isinstance(each, str)]
        if names:
            clients.resize([programs[name] for name in names])
            continue
        requests = []
        for name in (each for each in step if isinstance(each, int)):
            number = asked[name] = asked.get(name, 0) + 1
            requests.append(clients.request(name, number, *(["start"] if number == 1 else [])))
        clients.submit(*requests)
    clients.end()
    assert clients.scheduler.waiting() == statistics.Waiting()
    found = {key: [value(answer) for answer in each] for key, each in clients.answers.items()}
    assert found == {(name, number): [number] for name, count in asked.items() for number in range(1, count + 1)}
    clients.submit(clients.request(1, 1000, "start"))
    assert "Server is stopping" in str(clients.answers[1, 1000][0])
    alive = [weakref.ref(program) for program in programs.values()]
    programs.clear()
    gc.collect()
    assert [program() for program in alive] == [None] * 3, "nothing holds a program that serves no more"


@pytest.mark.parametrize("model", [DIRECT, OLDEST])
def test_what_is_abandoned_is_answered(model: spec.ModelSpec) -> None:
    clients = Clients(model, [Sums()])
    for name in range(1, 30):
        clients.submit(clients.request(name, 1, "start"))
    clients.scheduler.abandon()
    clients.end()
    assert sorted(clients.answers) == [(name, 1) for name in range(1, 30)]
    for (answer,) in clients.answers.values():
        assert "Server is stopping" in str(answer) or value(answer) == 1
    assert clients.scheduler.waiting() == statistics.Waiting()


def test_states_of_another_size_than_the_batch_fail_it_and_nothing_else() -> None:
    clients = Clients(DIRECT, [Broken()])
    clients.submit(clients.request(1, 1, "start"), clients.request(1, 2, "end"))
    clients.end()
    for (answer,) in clients.answers.values():
        assert "output 'SUM_OUT' has shape [7, 1], but the batch has 1 items" in str(answer)
    found = clients.counters.snapshot("m", "1", statistics.Waiting(), statistics.LoadCost())
    assert found.failures["BACKEND"] == 2


@pytest.mark.parametrize("name", ["\ud800", 2.5, True, None, [1]])
def test_any_id_gets_an_answer(name: Any) -> None:
    clients = Clients(DIRECT, [Sums()])
    clients.submit(clients.request(1, 1, "start", "end", sequence_id=name, timeout=name))
    clients.end()
    assert [len(each) for each in clients.answers.values()] == [1]


def test_what_has_run_is_not_kept_until_its_deadline() -> None:
    clients = Clients(DIRECT, [Sums()])
    for number in range(1, 1000):
        request = clients.request(1, number, *(["start"] if number == 1 else []))
        request.deadline_s = time.monotonic() + 3600
        clients.submit(request)
    clients.end()
    assert len(clients.answers) == 999
    gc.collect()
    held = [each for each in gc.get_objects() if isinstance(each, sequences.Request)]
    assert len(held) < 999
