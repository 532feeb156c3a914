"""Leases that grow: further copies on other workers, and the newest ones drained when there are too many."""

from __future__ import annotations

import dataclasses

import hypothesis
from hypothesis import strategies as st

from tests.unit.core import builders as b
from tms_server.model import group, ids, lease, pool
from tms_server.placement import check, copies, explain, plan, report, snapshot


def growing(name: str, wanted: int, size: int = 60, **fields: object) -> lease.Lease:
    """A lease that was there already and should have so many copies."""
    made = b.L(name, (b.M(f"m-{name}", size),), **fields).active()  # type: ignore[arg-type]  # a test's own fields
    return dataclasses.replace(made, wanted_copies=wanted)


def copy_on(
    held: lease.Lease, group_id: str, number: int, at: float = 0, *, draining: bool = False
) -> group.Assignment:
    booked = b.booked(held, group_id, draining=draining)
    return dataclasses.replace(booked, copy=number, assigned_at=b.at(at))


def workers(count: int, **fields: object) -> tuple[group.WorkerGroup, ...]:
    return tuple(b.a_group(f"w{n}", class_="shared", **fields) for n in range(1, count + 1))  # type: ignore[arg-type]  # the same


class NewIds(b.Ids):
    def __init__(self) -> None:
        super().__init__()
        self._made = 100


def planned(fleet: snapshot.Fleet) -> report.Plan:
    return plan.plan(fleet, b.at(100), NewIds())


def laws(fleet: snapshot.Fleet, made: report.Plan) -> set[str]:
    return {each.law for each in check.violations(fleet, made)}


def test_further_copies_go_on_workers_of_their_own() -> None:
    held = growing("a", 3)
    made = planned(b.fleet(held, groups=workers(2), assignments=(copy_on(held, "w1", 0),)))
    assert [(each.group_id, each.copy) for each in made.assignments] == [("w2", 1), ("w101", 2)]
    assert [each.group_id for each in made.grown] == ["w2", "w101"]
    assert (made.placed, made.waiting, made.short) == ((), (), ())
    assert [(each.group.id, each.group.generation) for each in made.groups] == [("w2", 2), ("w101", 1)]


def test_a_new_lease_gets_all_of_its_copies_at_once() -> None:
    asked = dataclasses.replace(b.L("a", (b.M("m", 10),)).pending(), wanted_copies=3)
    made = planned(b.fleet(asked, pools=(b.a_pool(most=2),)))
    assert [each.group_id for each in made.placed] == ["w101"]
    assert [each.group_id for each in made.grown] == ["w102"]
    (short,) = made.short
    assert (short.lease_id, short.reason) == (asked.id, report.NO_CAPACITY)


def test_copies_share_workers_with_other_leases() -> None:
    first, second = growing("a", 2, 40), growing("b", 2, 40)
    fleet = b.fleet(first, second, groups=workers(2), assignments=(copy_on(first, "w1", 0), copy_on(second, "w2", 0)))
    made = planned(fleet)
    assert {(each.lease_id, each.group_id) for each in made.assignments} == {("a", "w2"), ("b", "w1")}


def test_everybody_has_a_place_before_anybody_grows() -> None:
    held = growing("a", 3, priority=9)
    late = b.L("late", (b.M("n", 60),), priority=-9).pending()
    made = planned(
        b.fleet(held, late, pools=(b.a_pool(most=2),), groups=workers(1), assignments=(copy_on(held, "w1", 0),))
    )
    assert [each.lease_id for each in made.placed] == ["late"]
    assert made.grown == ()
    assert [each.lease_id for each in made.short] == ["a"]


def test_the_newest_copies_are_drained_first() -> None:
    held = growing("a", 1)
    there = (copy_on(held, "w1", 2, at=1), copy_on(held, "w2", 0, at=9), copy_on(held, "w3", 1, at=5))
    made = planned(b.fleet(held, groups=workers(3), assignments=there))
    assert [(each.group_id, each.draining, each.generation) for each in made.drained] == [
        ("w3", True, 2),
        ("w2", True, 2),
    ]
    assert {each.group.id for each in made.groups} == {"w2", "w3"}
    assert made.assignments == ()


def test_a_copy_that_still_drains_is_no_place_for_another() -> None:
    held = growing("a", 2)
    there = (copy_on(held, "w1", 0), copy_on(held, "w2", 1, draining=True))
    made = planned(b.fleet(held, pools=(b.a_pool(most=2),), groups=workers(2), assignments=there))
    assert made.assignments == ()
    assert [each.lease_id for each in made.short] == ["a"]


def test_a_lost_copy_is_made_anew_under_its_number() -> None:
    held = growing("a", 3)
    there = (copy_on(held, "w1", 0), copy_on(held, "gone", 1), copy_on(held, "w3", 2))
    made = planned(b.fleet(held, groups=(*workers(1), b.a_group("w3", class_="shared")), assignments=there))
    assert [each.copy for each in made.assignments] == [1]


def test_a_lease_of_its_own_worker_never_gets_copies() -> None:
    own = dataclasses.replace(b.L("a", own=b.worker()).active(), wanted_copies=5)
    fleet = b.fleet(own, groups=(b.a_group("w1", pool=None),), assignments=(copy_on(own, "w1", 0),))
    assert planned(fleet) == report.Plan()


def test_an_exclusive_lease_grows_on_empty_workers_only() -> None:
    held = growing("a", 2, 10, sharing=lease.Sharing(exclusive=True))
    other = growing("b", 1, 10)
    there = (copy_on(held, "w1", 0), copy_on(other, "w2", 0))
    made = planned(b.fleet(held, other, groups=workers(2), assignments=there))
    assert [each.group_id for each in made.assignments] == ["w101"]


def test_the_explanation_says_why_a_copy_waits() -> None:
    held = growing("a", 3)
    fleet = b.fleet(held, pools=(b.a_pool(most=1),), groups=workers(1), assignments=(copy_on(held, "w1", 0),))
    said = explain.explain(fleet, held)
    assert (said.outcome, said.fits) == (report.NO_CAPACITY, False)
    assert "placed on worker w1: 1 of 3 copies" in said.summary
    assert [each.rule for each in said.workers] == ["Copy"]
    assert "max_workers" in said.smallest_change
    enough = explain.explain(fleet, dataclasses.replace(held, wanted_copies=1))
    assert (enough.outcome, enough.summary) == ("Placed", "placed on worker w1")


def test_the_checker_finds_copies_too_many_or_together_and_wanted_ones_drained() -> None:
    held = growing("a", 1, 10)
    fleet = b.fleet(held, groups=workers(2), assignments=(copy_on(held, "w1", 0),))
    raised = {
        each.id: report.GroupChange(group=dataclasses.replace(each, generation=2), expected_generation=1)
        for each in workers(2)
    }
    more = dataclasses.replace(copy_on(held, "w2", 1), generation=2)
    told = report.Placed(lease_id=held.id, group_id=ids.GroupId("w2"), message="")
    too_many = report.Plan(groups=(raised[ids.GroupId("w2")],), assignments=(more,), grown=(told,))
    assert laws(fleet, too_many) == {"Copies"}
    twice = report.Plan(
        groups=(raised[ids.GroupId("w1")],),
        assignments=(dataclasses.replace(more, group_id=ids.GroupId("w1")),),
        grown=(dataclasses.replace(told, group_id=ids.GroupId("w1")),),
    )
    wants_two = dataclasses.replace(fleet, leases=(dataclasses.replace(held, wanted_copies=2),))
    assert laws(wants_two, twice) == {"Apart"}
    drained = dataclasses.replace(copy_on(held, "w1", 0, draining=True), generation=2)
    assert laws(fleet, report.Plan(groups=(raised[ids.GroupId("w1")],), drained=(drained,))) == {"Copies"}
    unknown = dataclasses.replace(drained, group_id=ids.GroupId("w2"))
    assert "Copies" in laws(fleet, report.Plan(groups=(raised[ids.GroupId("w2")],), drained=(unknown,)))


def test_one_more_copy_is_lawful_while_the_lease_moves() -> None:
    held = growing("a", 1, 10)
    leaving = dataclasses.replace(workers(1)[0], phase=group.GroupPhase.DRAINING)
    target = workers(2)[1]
    fleet = b.fleet(held, groups=(leaving, target), assignments=(copy_on(held, "w1", 0),))
    moving = report.Plan(
        groups=(report.GroupChange(group=dataclasses.replace(target, generation=2), expected_generation=1),),
        assignments=(dataclasses.replace(copy_on(held, "w2", 1), generation=2),),
        grown=(report.Placed(lease_id=held.id, group_id=target.id, message=""),),
    )
    assert laws(fleet, moving) == set()


@st.composite
def fleets(draw: st.DrawFn) -> snapshot.Fleet:
    """Leases that want other sizes than they have, in two small pools."""
    pools: tuple[pool.Pool, ...] = (b.a_pool(most=draw(st.integers(1, 4))), b.a_pool("gold", capacity=60, most=3))
    held = [
        growing(
            f"l{n}",
            draw(st.integers(1, 5)),
            draw(st.sampled_from([10, 30, 55])),
            pool=draw(st.sampled_from(["default", "gold"])),
            priority=draw(st.integers(-1, 1)),
            sharing=draw(st.sampled_from([lease.Sharing(), lease.Sharing(), lease.Sharing(exclusive=True)])),
        )
        for n in range(draw(st.integers(1, 6)))
    ]
    before = b.fleet(*held, pools=pools)
    settled = apply(before, plan.plan(before, b.at(10), b.Ids()))
    resized = [dataclasses.replace(each, wanted_copies=draw(st.integers(1, 5))) for each in settled.leases]
    return dataclasses.replace(settled, leases=tuple(resized))


def apply(fleet: snapshot.Fleet, made: report.Plan) -> snapshot.Fleet:
    groups = {each.id: each for each in fleet.groups} | {change.group.id: change.group for change in made.groups}
    drained = {(each.lease_id, each.group_id): each for each in made.drained}
    kept = [drained.get((each.lease_id, each.group_id), each) for each in fleet.assignments]
    return dataclasses.replace(fleet, groups=tuple(groups.values()), assignments=(*kept, *made.assignments))


def confirmed(fleet: snapshot.Fleet) -> snapshot.Fleet:
    """Every worker has said that it holds no more of what drained."""
    return dataclasses.replace(fleet, assignments=tuple(each for each in fleet.assignments if not each.draining))


@hypothesis.given(fleets())
@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_whatever_sizes_are_wanted_the_laws_hold_and_the_plan_gets_there(fleet: snapshot.Fleet) -> None:
    for _ in range(2):
        made = planned(fleet)
        assert check.violations(fleet, made) == ()
        fleet = apply(fleet, made)
        for held in fleet.leases:
            here = [each for each in fleet.assignments if each.lease_id == held.id]
            assert len({each.group_id for each in here}) == len(here)
            living = [each for each in here if not each.draining]
            short = any(each.lease_id == held.id for each in (*made.short, *made.waiting))
            assert short or len(living) == copies.wanted(held)
            assert len(living) <= copies.wanted(held)
        assert planned(fleet).assignments == ()
        assert planned(fleet).drained == ()
        fleet = confirmed(fleet)
