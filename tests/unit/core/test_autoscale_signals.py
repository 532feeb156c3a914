"""What the workers' reports say of how busy a lease is."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.unit.core import builders as b
from tms_server.autoscale import signals, window
from tms_server.model import bundle, group, ids, lease

ONE, TWO = b.M("one"), b.M("two")
HELD = b.L("l", (ONE,)).pending()
KEYS = frozenset(model.key for model in bundle.models(HELD))
K = lease.MetricKind


def said(at: float, model: group.ModelReport, *more: group.ModelReport, **fields: object) -> group.GroupReport:
    known = {"in_flight_known": True} | fields
    return b.a_report("w1", model, *more, received=at, **known)


def one(requests: int = 0, **more: Any) -> group.ModelReport:
    return b.model_report(ONE, request_count=requests, inference_count=requests, **more)


def two(requests: int = 0, **more: Any) -> group.ModelReport:
    return b.model_report(TWO, request_count=requests, **more)


def track(*reports: group.GroupReport) -> window.Track:
    made: window.Track | None = None
    for each in reports:
        made = window.follow(made, each)
    assert made is not None
    return made


def value(
    kind: lease.MetricKind, *tracks: window.Track, at: float = 10, expected: int = 0, quantile: int = 0
) -> int | None:
    metric = lease.ScalingMetric(kind=kind, target_milli=1, quantile_permille=quantile)
    return signals.value_milli(signals.serving(KEYS, tracks, b.at(at), expected=expected), metric)


def histogram(*counts: tuple[int, int]) -> tuple[group.LatencyBucket, ...]:
    return tuple(group.LatencyBucket(upper_us=upper, count=count) for upper, count in counts)


def test_queue_time_is_the_mean_over_all_requests_of_the_lease() -> None:
    busy = track(said(0, one(0)), said(10, one(30, queue_ns=90_000_000)))
    calm = track(said(0, one(100, queue_ns=5)), said(10, one(110, queue_ns=10_000_005)))
    # 30 waited 3 ms each, 10 waited 1 ms each: 2.5 ms.
    assert value(K.QUEUE_TIME, busy, calm) == 2500


def test_the_ratio_is_waiting_by_computing() -> None:
    found = track(said(0, one()), said(10, one(10, queue_ns=30, compute_ns=20)))
    assert value(K.QUEUE_RATIO, found) == 1500


def test_sums_are_over_the_workers() -> None:
    first = track(said(0, one(0, in_flight=3)), said(10, one(50, in_flight=3)))
    second = track(said(0, one(7, in_flight=1)), said(10, one(27, failure_count=10, in_flight=1)))
    assert value(K.REQUEST_RATE, first, second) == 8000
    assert value(K.IN_FLIGHT, first, second) == 4000


def test_memory_and_devices() -> None:
    first = track(said(0, one()), said(10, one(), used_bytes=5, gpu_utilization_permille=400))
    second = track(said(0, one()), said(10, one(), used_bytes=7, gpu_utilization_permille=800))
    assert value(K.MODEL_MEMORY, first, second) == 12_000
    assert value(K.GPU_UTILIZATION, first, second) == 600


def test_a_lease_counts_its_own_models_only() -> None:
    found = track(
        said(0, one(0, in_flight=1), two(0, in_flight=50)),
        said(10, one(10, in_flight=1), two(1000, in_flight=50, queue_ns=10**12)),
    )
    assert value(K.REQUEST_RATE, found) == 1000
    assert value(K.QUEUE_TIME, found) == 0
    assert value(K.IN_FLIGHT, found) == 1000


@pytest.mark.parametrize("permille", [500, 900, 950, 990])
def test_a_quantile_is_linear_inside_its_bucket(permille: int) -> None:
    buckets = histogram((1000, 50), (2000, 90), (10_000, 100), (0, 100))
    found = track(said(0, one(latency=histogram((1000, 0), (0, 0)))), said(10, one(100, latency=buckets)))
    expected = {500: 1000, 900: 2000, 950: 6000, 990: 9200}
    assert value(K.LATENCY, found, quantile=permille) == expected[permille]


def test_quantiles_of_several_workers_are_of_all_their_requests() -> None:
    first = track(
        said(0, one(latency=histogram((1000, 5), (0, 5)))), said(9, one(90, latency=histogram((1000, 95), (0, 95))))
    )
    second = track(
        said(0, one(latency=histogram((1000, 0), (2000, 0), (0, 0)))),
        said(9, one(10, latency=histogram((1000, 0), (2000, 10), (0, 10)))),
    )
    assert value(K.LATENCY, first, second, quantile=950) == 1500


def test_a_quantile_beyond_all_bounds_is_the_last_of_them() -> None:
    found = track(
        said(0, one(latency=histogram((1000, 0), (0, 0)))), said(9, one(9, latency=histogram((1000, 1), (0, 9))))
    )
    assert value(K.LATENCY, found, quantile=990) == 1000


@pytest.mark.parametrize("kind", list(K))
def test_nothing_known_is_no_value(kind: lease.MetricKind) -> None:
    assert value(kind) is None
    silent = track(said(0, one(), in_flight_known=False, activity_known=False))
    assert value(kind, silent) is None
    loading = track(
        said(0, b.model_report(ONE, group.ModelState.LOADING)), said(5, b.model_report(ONE, group.ModelState.LOADING))
    )
    assert value(kind, loading) is None
    old = track(said(0, one()), said(5, one(5), used_bytes=1, gpu_utilization_permille=1))
    assert value(kind, old, at=5 + window.WINDOW.total_seconds()) is None
    down = track(said(0, one()), said(5, one(5), server_ready=False, used_bytes=1, gpu_utilization_permille=1))
    assert value(kind, down) is None


def test_nobody_waits_where_nobody_asks() -> None:
    idle = track(said(0, one(5, latency=histogram((0, 5)))), said(10, one(5, latency=histogram((0, 5)))))
    assert value(K.QUEUE_TIME, idle) == 0
    assert value(K.QUEUE_RATIO, idle) == 0
    assert value(K.LATENCY, idle) == 0
    assert value(K.REQUEST_RATE, idle) == 0


def test_requests_that_hang_or_fail_are_not_idleness() -> None:
    hanging = track(said(0, one(5)), said(10, one(5, in_flight=2)))
    failing = track(said(0, one(5)), said(10, one(5, failure_count=2)))
    for kind in (K.QUEUE_TIME, K.QUEUE_RATIO):
        assert value(kind, hanging) is None
        assert value(kind, failing) is None


def test_a_server_without_histogram_has_no_latency() -> None:
    assert value(K.LATENCY, track(said(0, one()), said(10, one(5)))) is None


def test_a_reload_or_a_crash_begins_at_zero() -> None:
    reloaded = track(said(0, one(1000)), said(10, one(20)))
    assert value(K.REQUEST_RATE, reloaded) == 2000
    crashed = track(said(0, one(10)), said(10, one(20), server_restarts=1))
    assert value(K.REQUEST_RATE, crashed) == 2000
    other_sidecar = track(said(0, one(10), server_restarts=3), said(10, one(20), incarnation="i2"))
    assert value(K.REQUEST_RATE, other_sidecar) == 1000


def test_a_new_sidecar_beside_a_busy_worker_is_no_burst() -> None:
    found = track(said(0, two()), said(5, one(1_000_000), two()), said(10, one(1_000_010), two()))
    assert value(K.REQUEST_RATE, found) == 1000


def test_a_report_without_counters_is_bridged() -> None:
    found = track(said(0, one(0)), said(5, one(0), activity_known=False), said(10, one(20)))
    assert value(K.REQUEST_RATE, found) == 2000


def test_a_long_silence_counts_with_its_part_in_the_window() -> None:
    found = track(said(0, one(0)), said(150, one(300)))
    assert value(K.REQUEST_RATE, found, at=150) == 2000


def test_workers_that_are_not_heard_count_as_busy_as_the_others() -> None:
    found = track(said(0, one(in_flight=4)), said(10, one(in_flight=4)))
    assert value(K.IN_FLIGHT, found, expected=3) == 12_000


def test_a_worker_whose_models_are_gone_does_not_count() -> None:
    here = track(said(0, one(0)), said(10, one(10)))
    gone = track(said(0, one(0)), said(8, one(100)), said(9, b.model_report(ONE, group.ModelState.UNLOADED)))
    assert value(K.REQUEST_RATE, here, gone) == 1000


def test_an_older_report_changes_nothing() -> None:
    found = track(said(0, one(0)), said(10, one(10)))
    assert window.follow(found, said(5, one(99))) == found
    lost = dataclasses.replace(found.last, connected=False)
    assert not window.follow(found, lost).ready


@hypothesis.given(
    st.lists(st.tuples(st.floats(0.001, 3.0), st.integers(0, 50), st.booleans()), min_size=2, max_size=300)
)
def test_no_request_is_lost_or_counted_twice_and_memory_is_bounded(moves: list[tuple[float, int, bool]]) -> None:
    """Restarts included: within a window that holds everything, increments add up to what was asked since the start."""
    at, count, asked = 0.0, 0, 0
    long = dt.timedelta(days=1)
    wide = window.follow(None, said(0, one(0)), long)
    narrow = window.follow(None, said(0, one(0)))
    restarts = 0
    for pause, requests, restarted in moves:
        at += pause
        restarts += restarted
        count = requests if restarted else count + requests
        asked += requests
        report = said(at, one(count), server_restarts=restarts)
        wide, narrow = window.follow(wide, report, long), window.follow(narrow, report)
    key = next(iter(KEYS))
    assert sum(step.counts[key].requests for step in wide.steps if step.counts) == asked
    assert len(narrow.steps) <= 2 * window.STEPS
    assert all(step.ended_at > b.at(at) - window.WINDOW for step in narrow.steps)


@hypothesis.given(
    st.dictionaries(st.sampled_from([10, 20, 50, 100, 1000]), st.integers(0, 100), min_size=1),
    st.integers(1, 999),
    st.integers(1, 999),
)
def test_quantiles_grow_and_stay_within_the_bounds(buckets: dict[int, int], one_: int, other: int) -> None:
    low, high = sorted((one_, other))
    lower, upper = signals.quantile_us(buckets, low), signals.quantile_us(buckets, high)
    if not any(buckets.values()):
        assert lower is None
        return
    assert lower is not None
    assert upper is not None
    assert 0 <= lower <= upper <= max(buckets)


def test_ids_are_of_workers() -> None:
    assert track(said(0, one())).last.worker == ids.WorkerId(ids.GroupId("w1"))
