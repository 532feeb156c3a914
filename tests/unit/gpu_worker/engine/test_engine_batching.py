"""The laws of batching, over scripted arrivals on a virtual clock."""

from __future__ import annotations

import dataclasses

import hypothesis
import pytest
from hypothesis import strategies

from gpu_worker.engine import batching


@dataclasses.dataclass(frozen=True)
class Item:
    number: int
    arrival_ns: int
    size: int = 1
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    started_ns: int
    free_since_ns: int
    items: tuple[Item, ...]


def simulate(arrivals: list[Item], config: batching.Config, service_ns: int) -> list[Run]:
    """One instance that takes `service_ns` for every batch, from the first arrival until nothing is left."""
    now_ns = free_ns = 0
    coming, queue, runs = list(arrivals), list[Item](), list[Run]()
    while coming or queue:
        while coming and coming[0].arrival_ns <= now_ns:
            queue.append(coming.pop(0))
        decision = batching.decide(queue, now_ns, config)
        if decision.take:
            batch, queue = tuple(queue[: decision.take]), queue[decision.take :]
            runs.append(Run(now_ns, free_ns, batch))
            now_ns = free_ns = now_ns + service_ns
            continue
        moments = [item.arrival_ns for item in coming[:1]]
        if decision.wait_until_ns is not None:
            moments.append(decision.wait_until_ns)
        assert moments, "the policy waits for ever"
        assert min(moments) > now_ns, "the policy waits for what has passed"
        now_ns = min(moments)
    return runs


@strategies.composite
def scripts(draw: strategies.DrawFn) -> tuple[list[Item], batching.Config]:
    max_batch_size = draw(strategies.integers(1, 8))
    preferred = draw(strategies.frozensets(strategies.integers(1, max_batch_size), max_size=3))
    config = batching.Config(
        max_batch_size=max_batch_size,
        dynamic=draw(strategies.booleans()),
        preferred_sizes=preferred,
        max_delay_ns=draw(strategies.sampled_from([0, 1, 10, 100])),
    )
    gaps = draw(strategies.lists(strategies.integers(0, 30), max_size=30))
    arrival_ns, items = 0, []
    for number, gap in enumerate(gaps):
        arrival_ns += gap
        size = draw(strategies.integers(1, max_batch_size))
        items.append(Item(number, arrival_ns, size, draw(strategies.sampled_from("ab"))))
    return items, config


@hypothesis.given(scripts(), strategies.integers(0, 60))
def test_batches_keep_every_law(script: tuple[list[Item], batching.Config], service_ns: int) -> None:
    items, config = script
    runs = simulate(items, config, service_ns)
    assert [item for run in runs for item in run.items] == items  # in order, none lost, none doubled
    for run in runs:
        assert sum(item.size for item in run.items) <= config.max_batch_size
        assert len({item.key for item in run.items}) == 1
        assert config.dynamic or len(run.items) == 1
        assert run.started_ns <= max(run.items[0].arrival_ns + config.max_delay_ns, run.free_since_ns)


@hypothesis.given(scripts(), strategies.integers(0, 60))
def test_no_batch_is_smaller_than_it_must_be(script: tuple[list[Item], batching.Config], service_ns: int) -> None:
    items, config = script
    config = dataclasses.replace(config, dynamic=True, preferred_sizes=frozenset())
    for run in simulate(items, config, service_ns):
        after = run.items[-1].number + 1
        waiting = [item for item in items[after : after + 1] if item.arrival_ns <= run.started_ns]
        for item in waiting:
            full = sum(each.size for each in run.items) + item.size > config.max_batch_size
            assert full or item.key != run.items[0].key


def _queue(*sizes: int) -> list[Item]:
    return [Item(number, 0, size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("preferred", "sizes", "now_ns", "decision"),
    [
        ({4, 8}, (1, 1, 1, 1, 1), 0, batching.Decision(take=4)),
        ({4, 8}, (4, 4, 4), 0, batching.Decision(take=2)),
        ({4}, (1, 1), 0, batching.Decision(wait_until_ns=50)),
        ({4}, (1, 1), 50, batching.Decision(take=2)),
        ((), (1, 1), 0, batching.Decision(wait_until_ns=50)),
        ((), (5, 3), 0, batching.Decision(take=2)),
        ((), (5, 4), 0, batching.Decision(take=1)),
        ((), (), 0, batching.Decision()),
    ],
)
def test_preferred_sizes_and_delay(
    preferred: set[int], sizes: tuple[int, ...], now_ns: int, decision: batching.Decision
) -> None:
    config = batching.Config(max_batch_size=8, dynamic=True, preferred_sizes=frozenset(preferred), max_delay_ns=50)
    assert batching.decide(_queue(*sizes), now_ns, config) == decision


def test_an_idle_instance_takes_all_that_waits_at_once() -> None:
    config = batching.Config(max_batch_size=8, dynamic=True)
    assert batching.decide(_queue(1, 1, 1), 0, config) == batching.Decision(take=3)


def test_another_shape_closes_the_batch() -> None:
    queue = [Item(0, 0), Item(1, 0), Item(2, 0, key="other")]
    config = batching.Config(max_batch_size=8, dynamic=True, max_delay_ns=1000)
    assert batching.decide(queue, 0, config) == batching.Decision(take=2)
