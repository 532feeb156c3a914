"""The cache: bounded by bytes, the least recently used go first, and no answer to another question."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from gpu_worker.engine import batching, border, caching, regions, scheduler, spec, statistics, work
from gpu_worker.runtime import port

MODEL = spec.ModelSpec(
    name="m",
    version="1",
    platform="",
    max_batch_size=0,
    inputs=(spec.TensorSpec("IN", "FP32", (-1,)),),
    outputs=(spec.TensorSpec("OUT", "FP32", (-1,)),),
    batching=batching.Config(),
)


def tensors(*sizes: int) -> list[border.Tensor]:
    return [border.Tensor("t", "UINT8", (size,), memoryview(bytes(size))) for size in sizes]


@hypothesis.given(
    most_bytes=strategies.integers(0, 5000),
    steps=strategies.lists(
        strategies.tuples(
            strategies.sampled_from(["get", "put"]),
            strategies.sampled_from([b"a", b"b", b"c", b"d"]),
            strategies.lists(strategies.integers(0, 2000), max_size=3),
        ),
        max_size=40,
    ),
)
def test_the_store_keeps_to_its_bytes_and_forgets_who_was_used_least_recently(
    most_bytes: int, steps: list[tuple[str, bytes, list[int]]]
) -> None:
    store = caching.Store(most_bytes)
    model: collections.OrderedDict[bytes, list[int]] = collections.OrderedDict()
    for step, key, sizes in steps:
        if step == "get":
            found = store.get(key)
            assert (found is not None) == (key in model)
            if found is not None:
                assert [one.shape[0] for one in found] == model[key]
                model.move_to_end(key)
            continue
        kept = store.put(key, tensors(*sizes))
        assert kept == (_cost(sizes) <= most_bytes)
        if kept and key not in model:
            model[key] = sizes
        while sum(map(_cost, model.values())) > most_bytes:
            model.popitem(last=False)
        assert store.used_bytes == sum(map(_cost, model.values())) <= most_bytes
        assert len(store) == len(model)


def _cost(sizes: Sequence[int]) -> int:
    return 512 + sum(256 + size for size in sizes)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def asked(
    loop: asyncio.AbstractEventLoop, given: Sequence[border.Tensor | None], wanted: Sequence[tuple[str, int]] | None
) -> work.Work:
    request = border.InferRequest("m", "", "", [], [], {}, lambda answer, final=True: None)
    outputs = None if wanted is None else tuple(border.RequestedOutput(*each) for each in wanted)
    return work.Work(request, loop, 0, tuple(given), outputs, 1, (), None, work.NOTHING, work.NOTHING)


NAMES = strategies.sampled_from(["A", "B", "AB"])
INPUTS = strategies.lists(
    strategies.none()
    | strategies.builds(
        border.Tensor,
        NAMES,
        strategies.sampled_from(["UINT8", "INT8", "BYTES"]),
        strategies.lists(strategies.integers(0, 3), max_size=2).map(tuple),
        strategies.binary(max_size=3),
    ),
    max_size=3,
)
WANTED = strategies.none() | strategies.lists(strategies.tuples(NAMES, strategies.integers(0, 2)), max_size=2)


@hypothesis.given(
    first=strategies.tuples(strategies.integers(0, 1), INPUTS, WANTED),
    second=strategies.tuples(strategies.integers(0, 1), INPUTS, WANTED),
)
def test_only_the_same_question_has_the_same_key(
    first: tuple[int, list[border.Tensor | None], list[tuple[str, int]] | None],
    second: tuple[int, list[border.Tensor | None], list[tuple[str, int]] | None],
    loop: asyncio.AbstractEventLoop,
) -> None:
    keys = [caching.key(token, asked(loop, given, wanted)) for token, given, wanted in (first, second)]
    same = [(token, [each for each in given if each is not None], wanted) for token, given, wanted in (first, second)]
    assert (keys[0] == keys[1]) == (same[0] == same[1])


def test_what_says_more_than_its_outputs_is_not_kept(loop: asyncio.AbstractEventLoop) -> None:
    share = caching.Share(caching.Cache(2**20))
    for parameters, kept in (({"mine": 1}, False), ({}, True)):
        each = asked(loop, tensors(3), None)
        assert share.find(MODEL, each) is None
        share.keep(each, border.InferResponse("m", "1", "", tensors(5), parameters))
        found = share.find(MODEL, asked(loop, tensors(3), None))
        assert (found is not None and found.outputs[0].shape == (5,)) == kept


class Counting(port.Program):
    """Doubles, and tells how often."""

    inputs = outputs = ()
    shareable = True

    def __init__(self) -> None:
        self.runs = 0

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        self.runs += 1
        return [feeds["IN"] * 2]


class AtOnce(asyncio.SelectorEventLoop):
    """Answers arrive in the very moment they are posted."""

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]  # the arguments are whatever the callback takes
        callback(*args)
        return super().call_soon_threadsafe(lambda: None, context=context)


# Small: looked up before the queue. Large, or where order is kept: when it runs.
@pytest.mark.parametrize(
    ("count", "model"), [(4, MODEL), (2**16, MODEL), (4, dataclasses.replace(MODEL, preserve_ordering=True))]
)
def test_who_asks_again_is_answered_without_a_run(count: int, model: spec.ModelSpec) -> None:
    program, counters, cache = Counting(), statistics.Statistics(), caching.Cache(2**20)
    loop = AtOnce()
    answers: list[border.InferResponse] = []
    try:
        for values in ((1, 1), (1, 2), (2, 1)):
            serving = scheduler.Scheduler(model, [program], counters, caching.Share(cache))
            for number, value in enumerate((*values, *values)):
                _ask(serving, loop, answers, str(number), np.full(count, value, "<f4"))
            serving.stop()
            assert serving.join(time.monotonic() + 60)
    finally:
        loop.close()
    assert [each.id for each in answers] == list("0123") * 3
    told = [np.frombuffer(each.outputs[0].data, "<f4")[0] for each in answers]
    assert told == [2, 2, 2, 2, 2, 4, 2, 4, 4, 2, 4, 2]
    assert program.runs == 5  # none shares with what was loaded before
    counted = counters.snapshot("m", "1", statistics.Waiting(), statistics.LoadCost())
    assert (counted.cache_hit.count, counted.cache_miss.count) == (7, 5)
    assert (counted.success.count, counted.inference_count, counted.queue.count) == (12, 5, 12)
    assert sum(counted.latency) == 12


def _ask(
    serving: scheduler.Scheduler,
    loop: asyncio.AbstractEventLoop,
    answers: list[border.InferResponse],
    name: str,
    array: Any,
) -> None:
    answered = threading.Event()

    def reply(answer: object, *, final: bool = True) -> None:
        assert final
        assert isinstance(answer, border.InferResponse)
        answers.append(answer)
        answered.set()

    tensor = border.Tensor("IN", "FP32", array.shape, array.tobytes())
    request = border.InferRequest("m", "", name, [tensor], [], {}, reply)
    for replied, answer in serving.submit([request], loop, time.monotonic_ns(), regions.Regions()):
        replied(answer)
    assert answered.wait(60)
