"""Which batches are expected to be brief."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies

from gpu_worker.engine import pace

BRIEF = pace.Cost(pace.BRIEF_NS, pace.BRIEF_BYTES)
LONG = pace.Cost(pace.BRIEF_NS + 1, 0)
LARGE = pace.Cost(0, pace.BRIEF_BYTES + 1)

costs = strategies.sampled_from([BRIEF, BRIEF, BRIEF, LONG, LARGE])
kinds = strategies.tuples(strategies.sampled_from(["a", "b"]), strategies.integers(1, 64))


@hypothesis.given(strategies.lists(strategies.tuples(kinds, costs), max_size=300))
def test_what_was_not_brief_the_last_time_is_not_expected_to_be(
    batches: list[tuple[tuple[str, int], pace.Cost]],
) -> None:
    found = pace.Pace()
    last: dict[tuple[str, int], list[pace.Cost]] = {}
    for (key, items), cost in batches:
        found.note(key, items, cost)
        last.setdefault((key, items.bit_length()), []).append(cost)
    for key in "ab":
        for items in range(1, 65):
            seen = last.get((key, items.bit_length()), [])
            if found.is_brief(key, items):
                assert len(seen) >= 4
                assert all(each.brief for each in seen[-4:])


@hypothesis.given(strategies.lists(costs, max_size=300))
def test_patience_pays_whatever_came_before(before: list[pace.Cost]) -> None:
    found = pace.Pace()
    for cost in before:
        found.note((), 1, cost)
    for _ in range(512):
        found.note((), 1, BRIEF)
    assert found.is_brief((), 1)


def test_each_disappointment_asks_for_longer_proof() -> None:
    found = pace.Pace()
    needed = []
    for _ in range(12):
        count = 0
        while not found.is_brief((), 1):
            found.note((), 1, BRIEF)
            count += 1
        needed.append(count)
        found.note((), 1, LONG)
    assert needed == [4, 8, 16, 32, 64, 128, 256, 512, 512, 512, 512, 512]
    for _ in range(4096):
        found.note((), 1, BRIEF)
    found.note((), 1, LONG)
    for _ in range(8):
        found.note((), 1, BRIEF)
    assert found.is_brief((), 1), "a long time of brief batches makes up for it"


def test_larger_batches_must_show_it_themselves() -> None:
    found = pace.Pace()
    for _ in range(4):
        found.note((), 4, BRIEF)
    assert found.is_brief((), 7)
    assert not found.is_brief((), 8)
    assert not found.is_brief((), 3)


def test_very_many_kinds_are_not_kept() -> None:
    found = pace.Pace()
    for key in range(5000):
        found.note(key, 1, BRIEF)
    assert len(found._records) <= 1024
