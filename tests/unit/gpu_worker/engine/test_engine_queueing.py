"""The laws of the queues: who is served next, who is refused, who steps back."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import strategies

from gpu_worker.engine import batching, border, queueing, spec, validation, work

MODEL = spec.ModelSpec(
    name="m",
    version="1",
    platform="",
    max_batch_size=0,
    inputs=(),
    outputs=(),
    batching=batching.Config(),
)
PRIORITIES = spec.Priorities(3, 2, {1: spec.QueuePolicy(max_size=2), 3: spec.QueuePolicy(timeout_us=1, delays=True)})
LEVELLED = dataclasses.replace(MODEL, priorities=PRIORITIES)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def waiting(
    loop: asyncio.AbstractEventLoop,
    name: str,
    model: spec.ModelSpec = LEVELLED,
    arrival_ns: int = 0,
    deadline_s: float | None = None,
    **parameters: int,
) -> work.Work:
    request = border.InferRequest("m", "", name, [], [], parameters, lambda answer, final=True: None, deadline_s)
    admitted = work.Work(request, loop, arrival_ns, (), None, 1, (), None, work.NOTHING, work.NOTHING)
    return validation.scheduled(model, admitted)


def names(works: list[work.Work] | queueing.Queue) -> str:
    return "".join(each.request.id for each in works)


def test_levels_are_served_in_order_and_first_come_first_served_within(loop: asyncio.AbstractEventLoop) -> None:
    queue = queueing.made(LEVELLED)
    queue.add([waiting(loop, name, priority=level) for name, level in [("a", 2), ("b", 1), ("c", 3), ("d", 1)]])
    assert names(queue) == "bdac"
    assert names(queue.take(3, 0).works) == "bda"
    queue.add([waiting(loop, "e", priority=1)])
    assert names(queue.take(2, 0).works) == "ec"
    assert not len(queue)


@pytest.mark.parametrize(("asked", "level"), [(None, 2), (0, 2), (1, 1), (3, 3), (4, 2), (2**64 - 1, 2)])
def test_who_asks_for_a_level_that_is_none_gets_the_default(
    asked: int | None, level: int, loop: asyncio.AbstractEventLoop
) -> None:
    for model, expected in ((LEVELLED, level), (MODEL, 0)):
        found = waiting(loop, "a", model) if asked is None else waiting(loop, "a", model, priority=asked)
        assert found.level == expected


def test_each_level_has_a_size_of_its_own(loop: asyncio.AbstractEventLoop) -> None:
    queue = queueing.made(LEVELLED)
    works = [waiting(loop, name, priority=level) for name, level in zip("abcdef", (1, 1, 1, 2, 2, 2), strict=True)]
    assert names(list(queue.add(works))) == "c"
    queue.take(1, 0)
    assert not queue.add([waiting(loop, "g", priority=1)])
    assert names(list(queue.add([waiting(loop, "h", priority=1)]))) == "h"


def test_who_is_delayed_goes_behind_all_others_of_its_level_only(loop: asyncio.AbstractEventLoop) -> None:
    delaying = dataclasses.replace(
        LEVELLED, queue=spec.QueuePolicy(timeout_us=1, delays=True), priorities=spec.Priorities(2, 1)
    )
    queue = queueing.made(delaying)
    queue.add(
        [waiting(loop, "a", delaying), waiting(loop, "b", delaying, 500), waiting(loop, "z", delaying, priority=2)]
    )
    queue.settle(1000, 8)
    queue.add([waiting(loop, "c", delaying, 1000)])
    assert names(queue) == "bcaz"
    assert sorted(queue.moments()) == [1500, 2000]
    queue.settle(2000, 8)
    assert names(queue) == "abcz"
    queue.settle(10**12, 8)
    assert not list(queue.moments())
    assert names(queue.take(4, 10**12).works) == "abcz"


def test_a_single_queue_may_delay_too(loop: asyncio.AbstractEventLoop) -> None:
    model = dataclasses.replace(MODEL, queue=spec.QueuePolicy(timeout_us=5, allow_override=True, delays=True))
    queue = queueing.made(model)
    queue.add([waiting(loop, "a", model, timeout=1), waiting(loop, "b", model), waiting(loop, "c", model, timeout=9)])
    queue.settle(1000, 1)
    assert names(queue) == "bca"


@pytest.mark.parametrize("model", [MODEL, LEVELLED])
def test_the_dead_are_told_from_the_living(model: spec.ModelSpec, loop: asyncio.AbstractEventLoop) -> None:
    queue = queueing.made(model)
    works = [waiting(loop, name, model, deadline_s=end) for name, end in [("a", None), ("b", 1e-6), ("c", 1.0)]]
    queue.add(works)
    assert sorted(queue.moments()) == [1000, 10**9]
    assert queue.purge(999) == []
    assert names(queue.purge(1000)) == "b"
    works[0].request.cancel()
    taken = queue.take(2, 1000)
    assert (names(taken.works), names(taken.dead)) == ("c", "a")
    queue.add(works)
    assert names(queue.clear()) == "abc"
    assert not len(queue)


POLICIES = strategies.builds(
    spec.QueuePolicy,
    max_size=strategies.integers(0, 3),
    timeout_us=strategies.integers(0, 3),
    allow_override=strategies.booleans(),
    delays=strategies.booleans(),
)


@hypothesis.given(
    default=POLICIES,
    priorities=strategies.builds(
        spec.Priorities,
        levels=strategies.just(3),
        default=strategies.integers(1, 3),
        policies=strategies.dictionaries(strategies.integers(1, 3), POLICIES),
    ),
    levelled=strategies.booleans(),
    steps=strategies.lists(
        strategies.one_of(
            strategies.tuples(strategies.just("add"), strategies.integers(0, 4), strategies.integers(0, 4)),
            strategies.tuples(strategies.just("take"), strategies.integers(1, 4), strategies.integers(0, 2000)),
            strategies.tuples(strategies.just("purge"), strategies.just(0), strategies.integers(0, 2000)),
        ),
        max_size=40,
    ),
)
def test_every_queue_keeps_every_law(
    default: spec.QueuePolicy,
    priorities: spec.Priorities,
    steps: list[tuple[str, int, int]],
    loop: asyncio.AbstractEventLoop,
    *,
    levelled: bool,
) -> None:
    model = dataclasses.replace(MODEL, queue=default, priorities=priorities if levelled else spec.Priorities())
    queue = queueing.made(model)
    now_ns = 0
    inside: list[work.Work] = []
    for kind, number, other in steps:
        before = list(queue)
        assert sorted(map(id, before)) == sorted(map(id, inside))  # none lost, none doubled
        assert len(queue) == len(inside)
        if kind == "add":
            each = waiting(loop, "x", model, now_ns, priority=number, timeout=other)
            policy = model.priorities.policies.get(each.level, default)
            full = policy.max_size and sum(one.level == each.level for one in inside) >= policy.max_size
            assert bool(queue.add([each])) == bool(full)
            inside += [] if full else [each]
            continue
        now_ns += other
        if kind == "purge":
            gone = queue.purge(now_ns)
            assert all(each.deadline_ns is not None and each.deadline_ns <= now_ns for each in gone)
        else:
            queue.settle(now_ns, number)
            order = list(queue)
            _check_order(order, number, now_ns)
            taken = queue.take(min(number, len(order)), now_ns)
            gone = taken.works + taken.dead
            assert sorted(map(id, gone)) == sorted(map(id, order[:number]))
            assert all(each.deadline_ns is not None and each.deadline_ns <= now_ns for each in taken.dead)
            assert not any(each.deadline_ns is not None and each.deadline_ns <= now_ns for each in taken.works)
        inside = [each for each in inside if each not in gone]
    assert sorted(map(id, queue.clear())) == sorted(map(id, inside))


def _check_order(order: list[work.Work], most: int, now_ns: int) -> None:
    """Of the first `most`, no one is late who stands before another of its level that is not, nor younger than it."""
    levels = [each.level for each in order]
    assert levels == sorted(levels)
    for place, each in enumerate(order[:most]):
        behind = [one for one in order[place + 1 :] if one.level == each.level]
        late = each.delay_ns is not None and each.delay_ns <= now_ns
        if late:
            assert all(one.delay_ns is not None and one.delay_ns <= now_ns for one in behind)
        else:
            patient = [one for one in behind if one.delay_ns is None or one.delay_ns > now_ns]
            assert all(one.arrival_ns >= each.arrival_ns for one in patient)
