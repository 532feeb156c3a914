"""Quantiles are near the true ones, and of the last minute."""

from __future__ import annotations

import math

import hypothesis
import pytest
from hypothesis import strategies

from gpu_worker.engine import quantiles, statistics

SECOND_NS = 10**9


@hypothesis.given(
    strategies.lists(strategies.integers(0, 10**12), min_size=1, max_size=200),
    strategies.floats(0, 1),
)
def test_a_quantile_is_near_the_observation_of_its_rank(values: list[int], quantile: float) -> None:
    sketch = quantiles.Sketch()
    sketch.add(values, 0)
    summary = sketch.summary([quantile], 0)
    assert (summary.count, summary.total_us) == (len(values), sum(values))
    ((_, found),) = summary.quantiles
    true = sorted(values)[math.floor(quantile * (len(values) - 1))]
    assert math.isclose(found, true, rel_tol=1.01 * quantiles.ERROR)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 10), (0.25, 20), (0.5, 30), (0.99, 40), (1.0, 50)])
def test_a_quantile_is_the_observation_below_its_rank(share: float, expected: int) -> None:
    sketch = quantiles.Sketch()
    sketch.add([50, 40, 30, 20, 10], 0)
    ((_, found),) = sketch.summary([share], 0).quantiles
    assert found == pytest.approx(expected, rel=0.01)


def test_what_is_older_than_a_minute_is_forgotten_but_counted() -> None:
    sketch = quantiles.Sketch()
    sketch.add([1000], 0)
    sketch.add([10], 50 * SECOND_NS)
    ((_, early),) = sketch.summary([1.0], 59 * SECOND_NS).quantiles
    assert early == pytest.approx(1000, rel=0.01)
    late = sketch.summary([1.0], 61 * SECOND_NS)
    assert late.quantiles[0][1] == pytest.approx(10, rel=0.01)
    assert (late.count, late.total_us) == (2, 1010)
    assert math.isnan(sketch.summary([0.5], 200 * SECOND_NS).quantiles[0][1])


def test_what_is_not_asked_for_is_not_kept() -> None:
    counters = statistics.Statistics()
    counters.executed(statistics.Executed(items=1, waits_ns=[0], lives_ns=[1], timings=statistics.Timings()))
    seen = counters.snapshot("m", "1", statistics.Waiting(), statistics.LoadCost())
    assert (seen.first_response, dict(seen.summaries)) == (None, {})


def test_what_is_asked_for_is_kept_for_each_request() -> None:
    counters = statistics.Statistics(statistics.Observed((1.0, 2.0), (0.5,)))
    timings = statistics.Timings(3_000, 4_000_000, 5_000)
    counters.executed(
        statistics.Executed(
            items=3, waits_ns=[1000, 2000, 3000], lives_ns=[1_000_000, 1_000_001, 9_000_000], timings=timings
        )
    )
    seen = counters.snapshot("m", "1", statistics.Waiting(), statistics.LoadCost())
    assert seen.first_response is not None
    assert seen.first_response.counts == (1, 1, 1)
    assert seen.first_response.total_ms == pytest.approx(11.0, abs=0.01)
    totals = {name: (each.count, each.total_us) for name, each in seen.summaries.items()}
    assert totals == {
        "request": (3, 11_000),
        "queue": (3, 6),
        "compute_input": (3, 9),
        "compute_infer": (3, 12_000),
        "compute_output": (3, 15),
    }
    assert seen.summaries["queue"].quantiles[0][1] == pytest.approx(2, rel=0.01)
