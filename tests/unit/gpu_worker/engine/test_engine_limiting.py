"""The laws of the rate limiter: never more than there is, everybody's turn comes, the priorities hold."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from gpu_worker.engine import batching, border, limiting, regions, scheduler, spec, statistics
from gpu_worker.repository import configuration, rates
from gpu_worker.runtime import port

A, B = ("a", ""), ("b", "0")
DEMANDS = strategies.builds(
    limiting.Demand,
    strategies.dictionaries(strategies.sampled_from([A, B]), strategies.integers(0, 4)),
    strategies.integers(1, 3),
)


@hypothesis.given(
    limits=strategies.sampled_from(
        [(), (limiting.Limit("a", 4),), (limiting.Limit("a", 5), limiting.Limit("b", 4, "0"))]
    ),
    demands=strategies.lists(DEMANDS, min_size=1, max_size=5),
    steps=strategies.lists(
        strategies.tuples(
            strategies.sampled_from(["want", "ran", "again", "idle", "leave"]), strategies.integers(0, 4)
        ),
        max_size=60,
    ),
)
def test_no_more_is_held_than_there_is_and_everybody_s_turn_comes(
    limits: tuple[limiting.Limit, ...], demands: list[limiting.Demand], steps: list[tuple[str, int]]
) -> None:
    table = _Table(limits, demands)
    for step, who in steps:
        if who in table.inside:
            table.step(step, who)
        table.check()
    for _ in range(len(demands) + 1):
        for who in sorted(table.holding):
            table.step("ran", who)
    assert not table.wanting, "somebody waits for ever"
    table.check()


class _Table:
    """What the members have been told, beside what the allocator knows."""

    def __init__(self, limits: Sequence[limiting.Limit], demands: list[limiting.Demand]) -> None:
        self.allocator = limiting.Allocator(limits)
        self.demands = demands
        self.counts = {(limit.name, limit.device): limit.count for limit in limits}
        self.inside = set(range(len(demands)))
        self.wanting: set[int] = set()
        self.holding: set[int] = set()
        for number, demand in enumerate(demands):
            assert not self.allocator.enter(number, demand)

    def step(self, step: str, who: int) -> None:
        if step == "want":
            self.wanting |= {who} - self.holding
            self._grant([who] if self.allocator.want(who) and who not in self.holding else [])
            return
        ran = step != "idle" and who in self.holding
        self.wanting -= {who}
        self.holding -= {who}
        if step == "leave":
            self.inside -= {who}
            self._grant(self.allocator.leave(who))
            return
        self.wanting |= {who} if step == "again" else set()
        self._grant(self.allocator.give(who, ran=ran, again=step == "again"))

    def _grant(self, granted: Sequence[Any]) -> None:
        assert self.wanting.issuperset(granted)
        self.wanting.difference_update(granted)
        self.holding.update(granted)

    def check(self) -> None:
        """Without a limit there is as much as anybody needs, also of those that have left."""
        for resource in (A, B):
            used = sum(self.demands[each].needs.get(resource, 0) for each in self.holding)
            most = max(each.needs.get(resource, 0) for each in self.demands)
            assert used == self.allocator.used(resource) <= self.counts.get(resource, most)


@hypothesis.given(
    priorities=strategies.lists(strategies.integers(1, 4), min_size=2, max_size=4), late=strategies.integers(0, 200)
)
def test_who_always_wants_runs_as_often_as_its_priority_says(priorities: list[int], late: int) -> None:
    allocator = limiting.Allocator()
    demands = [limiting.Demand({A: 1}, priority) for priority in priorities]
    runs: dict[Hashable, int] = dict.fromkeys(range(len(demands)), 0)
    for who, demand in enumerate(demands):
        allocator.enter(who, demand)
    # The last begins to want later than the others, and catches up on nothing.
    active = list(range(len(demands) - 1))
    holder: Hashable = next(who for who in active if allocator.want(who))
    for who in active:
        allocator.want(who)
    before = runs
    for turn in range(late + 240):
        if turn == late:
            active.append(len(demands) - 1)
            allocator.want(active[-1])
            before = dict(runs)
        runs[holder] += 1
        (holder,) = allocator.give(holder, ran=True, again=True)
    steps = [
        (now - then) * priority for now, then, priority in zip(runs.values(), before.values(), priorities, strict=True)
    ]
    assert max(steps) - min(steps) <= 2 * max(priorities)


def test_who_wants_something_else_is_not_held_up() -> None:
    allocator = limiting.Allocator()
    for who, needs in (("holder", {A: 1}), ("waits", {A: 1, B: 1}), ("other", {}), ("behind", {B: 1})):
        allocator.enter(who, limiting.Demand(needs))
    assert allocator.want("holder")
    assert not allocator.want("waits")
    assert allocator.want("other")
    assert not allocator.want("behind")
    assert list(allocator.give("holder", ran=True)) == ["waits"]
    assert list(allocator.give("waits", ran=True)) == ["behind"]


def test_what_can_never_be_is_refused() -> None:
    config = configuration.from_text(
        "m",
        'instance_group { count: 2 rate_limiter { resources { name: "R" count: 3 } resources { name: "S" global: true } } }',
    )
    configuration.fill(config, 0)
    programs = [(port.Device("CPU", 0), Doubling()), (port.Device("CPU", 0), Doubling())]
    assert rates.turns(config, programs, None) is None
    for limits in ((), (limiting.Limit("R", 3, "0"), limiting.Limit("R", 2)), (limiting.Limit("S", 0),)):
        made = rates.turns(config, programs, limiting.Limiter(limits))
        assert made is not None
        assert list(made.demands.values()) == [limiting.Demand({("R", "0"): 3, ("S", ""): 0}, 1)] * 2
    with pytest.raises(border.InferenceError, match=r'"R" is limited to 2 which will prevent .* required count is 3'):
        rates.turns(config, programs, limiting.Limiter([limiting.Limit("R", 2)]))
    config.instance_group[0].rate_limiter.resources.add(name="S", count=1)
    with pytest.raises(border.InferenceError, match='"S" is present as both'):
        rates.turns(config, programs, limiting.Limiter())


class Doubling(port.Program):
    """Tells the most runs that there were at a time."""

    inputs = outputs = ()
    shareable = False
    running = most = 0
    lock = threading.Lock()

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        with Doubling.lock:
            Doubling.running += 1
            Doubling.most = max(Doubling.most, Doubling.running)
        result = feeds["IN"] * 2
        with Doubling.lock:
            Doubling.running -= 1
        return [result]


MODEL = spec.ModelSpec(
    name="m",
    version="1",
    platform="",
    max_batch_size=0,
    inputs=(spec.TensorSpec("IN", "FP32", (1,)),),
    outputs=(spec.TensorSpec("OUT", "FP32", (1,)),),
    batching=batching.Config(),
)


async def test_models_share_a_resource_and_all_are_answered() -> None:
    limiter = limiting.Limiter()
    loop = asyncio.get_running_loop()
    left, done = 300, asyncio.Event()

    def reply(answer: object, *, final: bool = True) -> None:
        nonlocal left
        assert final
        assert isinstance(answer, border.InferResponse)
        left -= 1
        if not left:
            done.set()

    serving = []
    for priority in (1, 2, 3):
        programs = [Doubling(), Doubling()]
        demands = {id(each): limiting.Demand({A: 1}, priority) for each in programs}
        turns = limiting.Turns(limiter, demands)
        serving.append(scheduler.Scheduler(MODEL, programs, statistics.Statistics(), turns=turns))
    Doubling.most = 0
    tensor = border.Tensor("IN", "FP32", (1,), np.ones(1, "<f4").tobytes())
    for number in range(100):
        for each in serving:
            request = border.InferRequest("m", "", str(number), [tensor], [], {}, reply)
            assert not each.submit([request], loop, time.monotonic_ns(), regions.Regions())
    await asyncio.wait_for(done.wait(), 60)
    for each in serving:
        each.stop()
    assert await asyncio.to_thread(lambda: all(each.join(time.monotonic() + 60) for each in serving))
    assert Doubling.most == 1
