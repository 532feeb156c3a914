"""What reports say of use."""

from __future__ import annotations

import dataclasses
import datetime as dt

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.unit.core import builders as b
from tms_server.leases import activity
from tms_server.model import group

MODEL = b.M("m", 10)
HELD = b.L("a", (MODEL,)).active()


def seen(
    received: float, count: int = 0, last: float | None = None, in_flight: int = 0, restarts: int = 0
) -> group.GroupReport:
    model = b.model_report(
        MODEL, inference_count=count, last_inference=None if last is None else b.at(last), in_flight=in_flight
    )
    return b.a_report("w1", model, received=received, server_restarts=restarts)


@pytest.mark.parametrize(
    ("previous", "report", "used"),
    [
        (None, seen(10), None),
        (None, seen(10, count=3, last=4), 4),
        (None, seen(10, count=3), 10),
        (seen(5, count=3), seen(10, count=3), None),
        (seen(5, count=3, last=4), seen(10, count=3, last=4), 4),
        (seen(5, count=3), seen(10, count=4, last=8), 8),
        (seen(5, count=3), seen(10, count=4), 10),
        (seen(5), seen(10, in_flight=1), 10),
        (seen(5, count=3), seen(10, count=4, last=99), 10),
        (seen(5, count=3), seen(10, count=4, last=1), 5),
        (seen(5, count=9), seen(10, count=0), 10),
        (seen(5, count=9), seen(10, count=2, last=7), 7),
        (seen(5, count=2), seen(10, count=2, restarts=1), 10),
        (seen(5, count=0), seen(10, count=0, restarts=1), None),
    ],
    ids=[
        "never used",
        "used before the first report",
        "used, nobody knows when",
        "the counter stands",
        "the counter stands and the time is known",
        "the counter rose",
        "the counter rose, nobody knows when",
        "in flight",
        "a worker's clock ahead of ours",
        "a worker's clock behind ours",
        "the counter started anew",
        "the counter started anew and rose",
        "the counter started anew and rose to the same",
        "a restart of an unused worker",
    ],
)
def test_last_use(previous: group.GroupReport | None, report: group.GroupReport, used: float | None) -> None:
    assert activity.observe(HELD, previous, report) == (None if used is None else b.at(used))


def test_what_is_known_is_never_forgotten() -> None:
    held = dataclasses.replace(HELD, last_activity_at=b.at(7))
    assert activity.observe(held, None, seen(10)) == b.at(7)
    assert activity.observe(held, None, b.a_report("w1", received=10)) == b.at(7)


def test_use_counts_for_every_lease_that_holds_the_model_and_no_other() -> None:
    report = seen(10, count=1, last=9)
    assert activity.observe(b.L("b", (b.M("n"), MODEL)).active(), None, report) == b.at(9)
    assert activity.observe(b.L("c", (b.M("m", 10, version="v2"),)).active(), None, report) is None


def test_in_use_is_a_request_to_one_of_its_models() -> None:
    assert activity.in_use(HELD, seen(10, in_flight=1))
    assert not activity.in_use(HELD, seen(10, count=4))
    assert not activity.in_use(b.L("c", (b.M("n"),)).active(), seen(10, in_flight=1))


REPORTS = st.builds(
    lambda count, last, in_flight, restarts: (count, last, in_flight, restarts),
    st.integers(0, 5),
    st.none() | st.integers(-100, 10_000),
    st.integers(0, 1),
    st.integers(0, 2),
)


@hypothesis.given(st.lists(REPORTS, min_size=1, max_size=8))
def test_last_use_never_goes_back_never_lies_in_the_future_and_sees_every_change(
    reports: list[tuple[int, int | None, int, int]],
) -> None:
    held, previous = HELD, None
    for place, (count, last, in_flight, restarts) in enumerate(reports):
        report = seen(10.0 * place, count, last, in_flight, restarts)
        used = activity.observe(held, previous, report)
        assert used is None or used <= report.received_at
        assert held.last_activity_at is None or (used is not None and used >= held.last_activity_at)
        if previous is not None and previous.models[0].inference_count != count:
            assert used is not None
            assert used >= previous.received_at
        held, previous = dataclasses.replace(held, last_activity_at=used), report


def test_a_lease_never_used_has_no_last_use() -> None:
    none: dt.datetime | None = activity.observe(HELD, None, b.a_report("w1"))
    assert none is None
