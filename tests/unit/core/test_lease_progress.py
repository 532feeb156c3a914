"""What a report means for a lease that is booked on the worker."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.core import builders as b
from tms_server.leases import progress
from tms_server.model import group, lease, resources

ONE, TWO = b.M("one", 10), b.M("two", 10)
HELD = b.L("a", (ONE, TWO)).pending()
BOOKED = b.booked(HELD, "w1", generation=3)
HERE = resources.Endpoint("127.64.0.1", 8000, 8001, 8002)
S = group.ModelState


def report(*states: group.ModelState, **more: object) -> group.GroupReport:
    models = (b.model_report(model, state) for model, state in zip((ONE, TWO), states, strict=False))
    base = b.a_report("w1", *models, generation=3, endpoints=(HERE,))
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]  # the tests name the fields


def of(found: group.GroupReport | None) -> progress.Progress:
    return progress.of(HELD, BOOKED, found, reachable=found is not None and HERE in found.endpoints)


@pytest.mark.parametrize(
    "found",
    [
        None,
        report(S.READY, S.READY, generation=2),
        report(),
        report(S.PENDING, S.PENDING),
        report(S.UNLOADED, S.DRAINING),
    ],
    ids=["no report", "of an older wish", "knows no model", "not begun", "only leaving"],
)
def test_nothing_is_said_of_the_lease(found: group.GroupReport | None) -> None:
    assert of(found) == progress.Absent()


@pytest.mark.parametrize(
    "found",
    [
        report(S.FETCHING),
        report(S.FETCHING, S.PENDING, server_ready=False),
        report(S.READY, S.LOADING),
        report(S.READY),
        report(S.READY, S.READY, endpoints=()),
    ],
    ids=["fetching", "fetching before the server is up", "second model loading", "second not begun", "endpoint closed"],
)
def test_loading(found: group.GroupReport) -> None:
    assert isinstance(of(found), progress.Loading)


def test_loading_tells_how_far_it_is() -> None:
    model = b.model_report(ONE, S.FETCHING, fetched_bytes=5, total_bytes=20)
    assert of(b.a_report("w1", model, generation=3)) == progress.Loading("one FETCHING 5 B of 20 B")


def test_ready_needs_every_model_and_the_endpoint() -> None:
    assert of(report(S.READY, S.READY)) == progress.Ready()
    assert of(report(S.READY, S.READY, generation=9)) == progress.Ready()
    other = b.model_report(b.M("two", 10, version="v2"))
    assert of(b.a_report("w1", b.model_report(ONE), other, generation=3, endpoints=(HERE,))) != progress.Ready()
    assert progress.of(HELD, BOOKED, report(S.READY, S.READY), reachable=False) != progress.Ready()


def test_a_final_failure_outweighs_a_passing_one() -> None:
    passing = b.model_report(ONE, S.FAILED, reason="Timeout", message="slow", retryable=True)
    final = b.model_report(TWO, S.FAILED, reason="BadModel", message="not ONNX")
    assert of(b.a_report("w1", passing, generation=3)) == progress.Failed("one", "Timeout", "slow", retryable=True)
    assert of(b.a_report("w1", passing, final, generation=3)) == progress.Failed(
        "two", "BadModel", "not ONNX", retryable=False
    )


def test_lost_is_told_from_not_begun() -> None:
    gone = of(report(S.READY, S.READY, connected=False))
    down = of(report(S.READY, S.READY, server_ready=False))
    assert isinstance(gone, progress.Lost)
    assert isinstance(down, progress.Lost)
    assert (gone.reason, down.reason) == ("WorkerLost", "ServerDown")


LEAVING = progress.drained(BOOKED, 4)


def released(found: group.GroupReport | None, *staying: lease.Lease) -> bool:
    return progress.released(HELD, LEAVING, staying, found)


def test_memory_is_free_once_a_later_report_holds_none_of_the_models() -> None:
    assert released(report(generation=4))
    assert released(report(S.UNLOADED, S.UNLOADED, generation=5))


@pytest.mark.parametrize(
    "found",
    [
        None,
        report(generation=3),
        report(S.UNLOADED, S.DRAINING, generation=4),
        report(S.READY, generation=4),
        report(generation=4, server_ready=False),
    ],
    ids=["no report", "of an older wish", "still draining", "still loaded", "a silent server proves nothing"],
)
def test_memory_is_not_free_yet(found: group.GroupReport | None) -> None:
    assert not released(found)


def test_models_that_another_lease_needs_stay_without_holding_the_release_up() -> None:
    assert released(report(S.READY, generation=4), b.L("b", (ONE,)).active())
    assert not released(report(S.READY, S.READY, generation=4), b.L("b", (ONE,)).active())
    assert not released(report(S.READY, generation=4), HELD)


def test_an_assignment_that_is_wanted_is_not_released() -> None:
    assert not progress.released(HELD, BOOKED, (), report(generation=9))
