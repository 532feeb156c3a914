"""The arithmetic of growth, against the published algorithm of the HorizontalPodAutoscaler."""

from __future__ import annotations

import datetime as dt
import math

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.unit.core import builders as b
from tms_server.autoscale import policy
from tms_server.model import lease

K = lease.MetricKind
SUM = lease.ScalingMetric(kind=K.IN_FLIGHT, target_milli=4000)
WHOLE = lease.ScalingMetric(kind=K.QUEUE_TIME, target_milli=10_000)


def rules(least: int = 1, most: int = 10, **behavior: object) -> lease.Autoscaling:
    told = {"scale_down_window": b.s(0)} | behavior
    return lease.Autoscaling(
        min_replicas=least,
        max_replicas=most,
        metrics=(SUM,),
        behavior=lease.ScalingBehavior(**told),  # type: ignore[arg-type]  # a test's own fields
    )


def decide(
    of: lease.Autoscaling,
    current: int,
    *values: tuple[lease.ScalingMetric, int | None],
    ready: int | None = None,
    memory: policy.Memory | None = None,
    at: float = 0,
    load: float = 0,
) -> policy.Decision:
    sizes = policy.Sizes(current=current, ready=current if ready is None else ready)
    readings = [policy.Reading(*each) for each in values]
    return policy.decide(of, sizes, readings, memory or policy.Memory(), b.at(at), load=b.s(load))


def life(
    of: lease.Autoscaling, values: list[tuple[float, int | None]], *, current: int = 1, load: float = 0
) -> list[int]:
    """Sizes after each decision; every worker wanted is ready at once."""
    memory, sizes = policy.Memory(), []
    for at, value in values:
        made = decide(of, current, (SUM, value), memory=memory, at=at, load=load)
        current, memory = made.size, made.memory
        sizes.append(current)
    return sizes


@pytest.mark.parametrize(
    ("current", "value", "size"),
    [
        (1, 20_000, 5),
        (5, 4_000, 1),
        (2, 8_800, 2),
        (2, 7_200, 2),
        (2, 8_801, 3),
        (3, 8_000, 2),
        (2, 0, 1),
        (9, 10**9, 10),
    ],
)
def test_a_sum_is_shared(current: int, value: int, size: int) -> None:
    found = decide(rules(scale_up_window=b.s(0)), current, (SUM, value), memory=seen())
    assert found.size == size


@pytest.mark.parametrize(
    ("current", "ready", "value", "size"),
    [(2, 2, 20_000, 4), (2, 1, 20_000, 2), (4, 4, 5_000, 2), (3, 3, 11_000, 3), (3, 3, 9_000, 3), (3, 3, 0, 1)],
)
def test_a_value_of_the_whole_acts_on_the_workers_that_serve(current: int, ready: int, value: int, size: int) -> None:
    assert decide(rules(), current, (WHOLE, value), ready=ready, memory=seen()).size == size


def test_the_metric_that_asks_for_most_decides() -> None:
    assert decide(rules(), 2, (SUM, 24_000), (WHOLE, 1_000), memory=seen()).size == 6


def test_a_missing_metric_never_shrinks_and_others_still_grow() -> None:
    shrinking = decide(rules(), 4, (SUM, 0), (WHOLE, None), memory=seen())
    assert (shrinking.size, shrinking.reason) == (4, "MetricMissing")
    assert "queue_time" in shrinking.message
    assert decide(rules(), 4, (SUM, None), (WHOLE, None), memory=seen()).size == 4
    assert decide(rules(), 4, (SUM, 40_000), (WHOLE, None), memory=seen()).size == 10


@pytest.mark.parametrize(("current", "size"), [(0, 2), (1, 2), (9, 5)])
def test_bounds_hold_without_any_metric(current: int, size: int) -> None:
    assert decide(rules(2, 5), current, (SUM, None)).size == size


def test_growth_waits_for_one_measured_load() -> None:
    of = rules()
    busy = [(at, 20_000) for at in (0.0, 10.0, 20.0, 30.0, 31.0)]
    assert life(of, list(busy), load=30) == [1, 1, 1, 5, 5]
    assert life(of, list(busy), load=0)[0] == 5


def test_growth_during_a_wait_is_the_least_that_was_asked_for() -> None:
    of = rules(scale_up_window=b.s(30))
    assert life(of, [(0, 4000), (10, 40_000), (20, 12_000), (31, 40_000), (41, 40_000)]) == [1, 1, 1, 3, 3]


def test_shrinking_waits_for_its_window() -> None:
    of = rules(scale_down_window=b.s(300))
    values = [(0, 40_000), (1, 0), (299, 0), (300, 0), (301, 0)]
    assert life(of, list(values)) == [10, 10, 10, 1, 1]


def test_the_default_window_of_shrinking_is_five_minutes() -> None:
    of = rules(scale_down_window=None)
    assert life(of, [(0, 40_000), (1, 0), (299, 0), (301, 0)]) == [10, 10, 10, 1]


def test_steps_are_bounded_in_a_period() -> None:
    of = rules(max_step_up=2, max_step_down=3, period=b.s(15))
    assert life(of, [(0, 40_000), (5, 40_000), (15, 40_000), (20, 40_000), (30, 40_000)]) == [3, 3, 5, 5, 7]
    assert life(of, [(0, 0), (5, 0), (15, 0), (30, 0)], current=10) == [7, 7, 4, 1]


def test_steps_the_other_way_count_against_a_period() -> None:
    of = rules(max_step_up=2, max_step_down=2, period=b.s(60))
    assert life(of, [(0, 40_000), (10, 0), (20, 40_000)], current=4) == [6, 2, 6]


def test_every_decision_says_why() -> None:
    assert decide(rules(), 1, (SUM, 20_000), memory=seen()).reason == "ScaledUp"
    assert decide(rules(), 5, (SUM, 4_000), memory=seen()).reason == "ScaledDown"
    assert decide(rules(), 5, (SUM, 20_000), memory=seen()).reason == "Enough"
    assert decide(rules(), 1, (SUM, 20_000), load=60).reason == "Stabilizing"
    assert "in_flight 20000m of 4000m" in decide(rules(), 1, (SUM, 20_000), memory=seen()).message


VALUES = st.lists(st.tuples(st.floats(0.5, 40), st.one_of(st.none(), st.integers(0, 100_000))), min_size=1, max_size=60)
BEHAVIORS = st.fixed_dictionaries(
    {
        "scale_up_window": st.sampled_from([None, b.s(0), b.s(30)]),
        "scale_down_window": st.sampled_from([None, b.s(0), b.s(60)]),
        "max_step_up": st.integers(0, 3),
        "max_step_down": st.integers(0, 3),
    }
)


@hypothesis.given(VALUES, BEHAVIORS, st.integers(1, 4), st.integers(0, 6), st.integers(1, 12))
def test_sizes_stay_within_bounds_and_missing_metrics_hold(
    moves: list[tuple[float, int | None]], behavior: dict[str, object], least: int, more: int, current: int
) -> None:
    of = rules(least, least + more, **behavior)
    at, values = 0.0, []
    for pause, value in moves:
        at += pause
        values.append((at, value))
    before = min(max(current, least), least + more)
    for (_, value), size in zip(values, life(of, values, current=current), strict=True):
        assert least <= size <= least + more
        if value is None:
            assert size == before
        before = size


@hypothesis.given(st.integers(1, 30), st.integers(0, 200_000), st.integers(0, 200_000))
def test_more_load_never_asks_for_less(current: int, one: int, other: int) -> None:
    low, high = sorted((one, other))
    sizes = policy.Sizes(current=current, ready=current)
    for metric in (SUM, WHOLE):
        less = policy.proposal(sizes, [policy.Reading(metric, low)])
        more = policy.proposal(sizes, [policy.Reading(metric, high)])
        assert less is not None
        assert more is not None
        # Inside the tolerance the present size holds, which may be one more than just below it would need.
        assert less <= max(more, current)
        assert more >= min(less, current)


@hypothesis.given(st.integers(1, 20), st.lists(st.integers(-100, 100), min_size=1, max_size=50))
def test_nothing_moves_inside_the_tolerance(current: int, permille: list[int]) -> None:
    of = rules(1, 20)
    exact = SUM.target_milli * current
    values = [(float(at), exact + exact * off // 1000) for at, off in enumerate(permille) if abs(off) < 100]
    assert all(size == current for size in life(of, list(values), current=current))


@hypothesis.given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 10**7), st.sampled_from([SUM, WHOLE]))
def test_proposals_are_those_of_the_published_formula(
    current: int, ready: int, value: int, metric: lease.ScalingMetric
) -> None:
    if metric is SUM:
        ratio = value / (metric.target_milli * current)
        wanted = math.ceil(value / metric.target_milli)
    else:
        ratio = value / metric.target_milli
        wanted = math.ceil(round(ratio * ready, 9))
    hypothesis.assume(abs(abs(ratio - 1) - 0.1) > 1e-9)
    expected = current if abs(ratio - 1) <= 0.1 else wanted
    sizes = policy.Sizes(current=current, ready=ready)
    assert policy.proposal(sizes, [policy.Reading(metric, value)]) == expected


@hypothesis.given(
    st.lists(st.tuples(st.floats(0.5, 40), st.integers(0, 60_000)), min_size=1, max_size=40),
    st.sampled_from([0, 20, 60, 300]),
    st.sampled_from([0, 20, 60]),
)
def test_stabilization_is_that_of_a_plain_list_of_recommendations(
    moves: list[tuple[float, int]], down_s: int, up_s: int
) -> None:
    """The runs that are remembered are worth as much as every single recommendation."""
    of = rules(1, 100, scale_down_window=b.s(down_s), scale_up_window=b.s(up_s))
    at, current, memory = 0.0, 3, policy.Memory()
    plain: list[tuple[dt.datetime, int]] = []
    for pause, value in moves:
        at += pause
        now = b.at(at)
        asked = policy.proposal(policy.Sizes(current=current, ready=current), [policy.Reading(SUM, value)])
        assert asked is not None
        plain = plain or [(now, current)]
        up = min([asked, *(size for then, size in plain if then > now - b.s(up_s))])
        down = max([asked, *(size for then, size in plain if then > now - b.s(down_s))])
        wanted = min(max(current, up), down)
        plain.append((now, asked))
        made = decide(of, current, (SUM, value), memory=memory, at=at)
        assert made.size == max(1, wanted)
        current, memory = made.size, made.memory


def test_what_is_remembered_is_bounded() -> None:
    memory, of = policy.Memory(), rules(1, 2)
    for at in range(5000):
        memory = decide(of, 1 + at % 2, (SUM, 4000 + 4000 * (at % 2)), memory=memory, at=at).memory
    assert len(memory.runs) <= policy.RUNS
    assert len(memory.changes) <= policy.RUNS


def seen() -> policy.Memory:
    """Of an autoscaler that has looked long ago: nothing holds the next decision back."""
    long_ago = b.at(-7200)
    return policy.Memory(runs=(policy.Run(long_ago, long_ago, 1),))
