"""Why a lease is where it is."""

from __future__ import annotations

import dataclasses

import hypothesis

from tests.unit.core import builders as b
from tests.unit.core import test_placement_plan as plans
from tms_server.model import lease, source
from tms_server.placement import explain, plan, report, snapshot

SMALL, LARGE = b.L("small", (b.M("s", 30),)).active(), b.L("large", (b.M("l", 60),)).active()
FULL = b.fleet(
    SMALL,
    LARGE,
    pools=(b.a_pool(most=2),),
    groups=(b.a_group("w1", class_="shared"), b.a_group("w2", class_="pytorch"), b.a_group("w3", pool="gold")),
    assignments=(b.booked(SMALL, "w1"), b.booked(LARGE, "w1")),
)


def test_each_worker_is_shown_with_the_rule_and_the_numbers() -> None:
    found = explain.explain(FULL, b.L("new", (b.M("n", 35),)).pending())
    assert [(each.group_id, each.rule, each.missing_bytes) for each in found.workers] == [
        ("w1", "Memory", 25),
        ("w2", "FrameworkClass", 0),
        ("w3", "Pool", 0),
    ]
    first = found.workers[0]
    assert (first.capacity_bytes, first.free_bytes, first.held_by) == (100, 10, ("large", "small"))
    assert (found.fits, found.outcome, found.nearest_fit, found.needed_bytes) == (False, "NoCapacity", "w1", 35)
    assert "needs 35 B (n 35 B declared)" in found.summary


def test_the_smallest_change_names_the_smallest_lease_that_would_do() -> None:
    found = explain.explain(FULL, b.L("new", (b.M("n", 35),)).pending())
    assert found.smallest_change == (
        "free 25 B on worker w1 (the end of lease small frees 30 B), or raise max_workers of pool default above 2"
    )
    none_does = explain.explain(FULL, b.L("new", (b.M("n", 95),)).pending())
    assert none_does.smallest_change == "free 85 B on worker w1, or raise max_workers of pool default above 2"


def test_a_lease_that_would_fit_is_told_where() -> None:
    found = explain.explain(FULL, b.L("new", (b.M("n", 10),)).pending())
    assert (found.fits, found.outcome, found.summary) == (True, "Placed", "fits on worker w1")
    roomy = dataclasses.replace(FULL, pools=(b.a_pool(most=3),))
    found = explain.explain(roomy, b.L("new", (b.M("n", 50),)).pending())
    assert (found.fits, found.summary) == (True, "gets a new worker of pool default")
    own = b.L("own", (b.M("n", 50),), own=b.worker()).pending()
    assert explain.explain(FULL, own).summary == "gets a new worker of its own"


def test_a_worker_of_its_own_fits_the_lease_that_has_it_and_no_other() -> None:
    mine = b.L("mine", (b.M("m", 10),), own=b.worker())
    fleet = b.fleet(mine.active(), groups=(b.a_group("w1", pool=None),), assignments=(b.booked(mine.active(), "w1"),))
    (own,) = explain.explain(fleet, mine.active()).workers
    assert (own.fits, own.rule, own.message) == (True, "", "is the lease's own worker")
    (others,) = explain.explain(fleet, b.L("new", (b.M("n", 10),), own=b.worker()).pending()).workers
    assert (others.fits, others.rule) == (False, "Pool")


def test_a_lease_that_can_never_fit_is_told_the_bytes() -> None:
    found = explain.explain(FULL, b.L("new", (b.M("n", 130),)).pending())
    assert (found.outcome, found.nearest_fit) == ("CannotFit", None)
    assert "30 B too few" in found.summary
    assert found.smallest_change == "ask for a pool whose workers have at least 130 B"
    mixed = b.L("new", (b.M("n", 1), b.M("t", 1, framework=source.Framework.PYTORCH))).pending()
    assert "dedicated worker" in explain.explain(FULL, mixed).smallest_change


def test_a_placed_lease_is_explained_as_if_it_were_booked_nowhere() -> None:
    found = explain.explain(FULL, LARGE)
    assert (found.fits, found.summary) == (True, "placed on worker w1")
    assert found.workers[0].held_by == ("small",)
    assert found.workers[0].fits


def test_leases_that_cannot_be_explained_by_workers() -> None:
    assert explain.explain(FULL, b.L("u").unresolved()).outcome == "Unresolved"
    assert explain.explain(FULL, b.L("p", pool="gone").pending()).outcome == "PoolGone"
    leaving = dataclasses.replace(LARGE, state=lease.LeaseState.RELEASING)
    assert explain.explain(FULL, leaving).outcome == "RELEASING"


def test_company_that_is_not_there() -> None:
    fond = b.L("fond", (b.M("f", 1),), sharing=lease.Sharing(share_with=("team=x",))).pending()
    found = explain.explain(FULL, fond)
    assert (found.outcome, found.smallest_change) == ("NoCapacity", "drop share_with")


@hypothesis.given(plans.fleets())
@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_the_explanation_agrees_with_the_planner(fleet: snapshot.Fleet) -> None:
    made = plan.plan(fleet, b.at(100), plans.FreshIds())
    decisions: tuple[report.Decision, ...] = (*made.placed, *made.waiting, *made.failed)
    order = [each for each in fleet.leases if any(each.id == found.lease_id for found in decisions)]
    if not order:
        return
    first = min(order, key=plan.order)
    (decision,) = [each for each in decisions if each.lease_id == first.id]
    others = {each.lease_id for each in decisions} - {first.id}
    alone = dataclasses.replace(fleet, leases=tuple(each for each in fleet.leases if each.id not in others))
    found = explain.explain(alone, first)
    if not first.spec.sharing.share_with:
        assert found.fits == isinstance(decision, report.Placed)
        assert (found.outcome == "CannotFit") == isinstance(decision, report.Failed)
