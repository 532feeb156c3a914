from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from sidecar import activity

SPAN_MS = 1000


def counters(requests: int, last_ms: int) -> activity.Counters:
    return activity.Counters(inference_count=requests, request_count=requests, last_inference_ms=last_ms)


# Between two readings: so many requests at most, or a crash after some requests that nobody read.
steps = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=20)


@hypothesis.given(steps)
def test_no_use_is_ever_missed_longer_than_to_the_next_reading(
    world: list[tuple[int, bool, bool]],
) -> None:
    """A scripted server; `last_use_ms` is the truth, which the reading after it must not fall short of."""
    now_ms, count, last_told_ms, last_use_ms = 10_000, 0, 0, 0
    known = activity.advance(None, counters(0, 0), now_ms)
    for requests, crashes, tells_time in world:
        now_ms += SPAN_MS
        if requests:
            count, last_use_ms = count + requests, now_ms - SPAN_MS // 2
            last_told_ms = last_use_ms if tells_time else last_told_ms
        if crashes:
            count, last_told_ms = 0, 0
            known = activity.interrupted(known, now_ms)
        before = known
        known = activity.advance(known, counters(count, last_told_ms), now_ms)

        assert known.last_inference_ms >= last_use_ms
        assert before.last_inference_ms <= known.last_inference_ms <= now_ms


@hypothesis.given(st.integers(0, 5), st.integers(0, 20_000))
def test_reading_the_same_counters_again_proves_idleness(requests: int, last_ms: int) -> None:
    first = activity.advance(None, counters(requests, last_ms), 20_000)

    assert activity.advance(first, counters(requests, last_ms), 30_000) == first


def test_counters_that_went_back_unnoticed_count_as_use() -> None:
    before = activity.advance(None, counters(7, 5_000), 6_000)

    assert activity.advance(before, counters(0, 0), 60_000).last_inference_ms == 60_000


def test_a_failed_request_that_moves_no_time_is_use() -> None:
    before = activity.advance(None, counters(1, 5_000), 6_000)
    failed = activity.Counters(inference_count=1, request_count=2, last_inference_ms=5_000)

    assert activity.advance(before, failed, 9_000).last_inference_ms == 9_000


def test_a_server_ahead_of_this_clock_does_not_move_use_into_the_future() -> None:
    assert activity.advance(None, counters(1, 99_000), 6_000).last_inference_ms == 6_000


def test_versions_add_up() -> None:
    both = counters(1, 5_000) + counters(2, 4_000)

    assert both == counters(3, 5_000)
