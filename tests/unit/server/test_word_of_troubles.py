"""Which word counts: that of a worker's sidecar, or that of the backend."""

from __future__ import annotations

import pytest

from tests.unit.core import builders as b
from tms_server.leases import progress
from tms_server.model import group, ids
from tms_server.ports import backend
from tms_server.reconcilers import hearing
from tms_server.world import sight

MODEL = b.M("m", 10)
ASKED = b.L("a", (MODEL,)).pending()
GROUP = ids.GroupId("w1")
NO_IMAGE = backend.Trouble("ImagePullFailed", "not found")


def said(*models: group.ModelReport, server_ready: bool) -> progress.Progress | None:
    """What is made of a lease whose worker's image cannot be pulled, as far as the backend knows."""
    report = b.a_report("w1", *models, server_ready=server_ready)
    worker = sight.Worker(id=ids.WorkerId(GROUP), report=report, routed=frozenset())
    seen = sight.Sight(workers={GROUP: (worker,)}, troubles={GROUP: NO_IMAGE})
    case = hearing.Case(held=ASKED, booked=[b.booked(ASKED, "w1")], owner="lease/a", endpoint=None)
    return hearing.said(case, seen)


def test_a_sidecar_that_fetches_for_a_server_that_cannot_start_hides_nothing() -> None:
    fetched = b.model_report(MODEL, group.ModelState.FETCHING)
    assert said(fetched, server_ready=False) == progress.Troubled("ImagePullFailed", "not found")


@pytest.mark.parametrize("state", [group.ModelState.FETCHING, group.ModelState.LOADING])
def test_a_server_that_answers_outweighs_what_stands_against_another_replica(state: group.ModelState) -> None:
    assert isinstance(said(b.model_report(MODEL, state), server_ready=True), progress.Loading)


def test_a_model_that_can_never_be_fetched_is_the_end_whatever_the_backend_says() -> None:
    failed = b.model_report(MODEL, group.ModelState.FAILED, reason="SourceChanged")
    assert isinstance(said(failed, server_ready=False), progress.Failed)
