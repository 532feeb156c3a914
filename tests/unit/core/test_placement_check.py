"""The checker finds each law that a wrong plan breaks."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.core import builders as b
from tms_server.model import group, ids, lease, source
from tms_server.placement import check, plan, report, snapshot

FIRST, SECOND = b.L("a", (b.M("m", 60),)).pending(), b.L("b", (b.M("n", 40),)).pending()


def stored(*leases: lease.Lease, **more: object) -> snapshot.Fleet:
    """A fleet whose one stored group is w9, with room for both leases."""
    group_ = b.a_group("w9", class_="shared")
    return b.fleet(*(leases or (FIRST, SECOND)), **({"groups": (group_,)} | more))  # type: ignore[arg-type]  # the tests name the fields


def laws(fleet: snapshot.Fleet, made: report.Plan) -> set[str]:
    return {each.law for each in check.violations(fleet, made)}


def good(fleet: snapshot.Fleet) -> report.Plan:
    return plan.plan(fleet, b.at(100), b.Ids())


def forced(fleet: snapshot.Fleet, **changes: object) -> report.Plan:
    """The plan for two leases that fit together, for a fleet in which they do not."""
    return dataclasses.replace(good(stored()), **changes)  # type: ignore[arg-type]  # the tests name the fields


def test_a_good_plan_breaks_nothing() -> None:
    assert laws(stored(), good(stored())) == set()
    check.enforce(stored(), good(stored()))


@pytest.mark.parametrize(
    ("law", "first", "second"),
    [
        ("Capacity", FIRST, b.L("b", (b.M("n", 41),)).pending()),
        ("NameClash", FIRST, b.L("b", (b.M("m", 10, version="v2"),)).pending()),
        ("FrameworkClass", FIRST, b.L("b", (b.M("n", 10, framework=source.Framework.PYTORCH),)).pending()),
        ("Pool", FIRST, b.L("b", (b.M("n", 10),), pool="gold").pending()),
        ("Pool", FIRST, b.L("b", (b.M("n", 10),), own=b.worker()).pending()),
        ("NotWith", FIRST, b.L("b", (b.M("n", 10),), sharing=lease.Sharing(not_with=("a",))).pending()),
        ("NotWith", b.L("a", (b.M("m", 1),), sharing=lease.Sharing(not_with=("b",))).pending(), SECOND),
        ("Exclusive", FIRST, b.L("b", (b.M("n", 10),), sharing=lease.Sharing(exclusive=True)).pending()),
        ("ShareWith", FIRST, b.L("b", (b.M("n", 10),), sharing=lease.Sharing(share_with=("x=y",))).pending()),
    ],
)
def test_two_leases_that_must_not_meet(law: str, first: lease.Lease, second: lease.Lease) -> None:
    fleet = stored(first, second, pools=(b.a_pool(), b.a_pool("gold")))
    assert law in laws(fleet, forced(fleet))


def test_draining_bytes_count() -> None:
    leaving = dataclasses.replace(b.L("l", (b.M("l", 1),)).active(), state=lease.LeaseState.RELEASING)
    fleet = stored(FIRST, SECOND, leaving, assignments=(b.booked(leaving, "w9", draining=True),))
    assert laws(fleet, forced(fleet)) == {"Capacity"}


def test_a_lease_forgotten_or_decided_twice() -> None:
    made = good(stored())
    assert "NobodyLost" in laws(stored(), dataclasses.replace(made, placed=made.placed[:1]))
    twice = report.Waiting(lease_id=FIRST.id, reason="NoCapacity", message="")
    assert "NobodyLost" in laws(stored(), dataclasses.replace(made, waiting=(twice,)))
    assert "NobodyLost" in laws(stored(), report.Plan())


def test_a_copy_wanted_twice() -> None:
    fleet = stored(FIRST, SECOND, assignments=(b.booked(FIRST, "w9"),))
    assert "OneCopy" in laws(fleet, forced(fleet))


def test_an_unfenced_write() -> None:
    made = good(stored())
    (change,) = made.groups
    same = dataclasses.replace(change, group=dataclasses.replace(change.group, generation=1))
    assert "Generations" in laws(stored(), dataclasses.replace(made, groups=(same,)))
    stale = dataclasses.replace(change, expected_generation=0)
    assert "Generations" in laws(stored(), dataclasses.replace(made, groups=(stale,)))
    assert "Generations" in laws(stored(), dataclasses.replace(made, groups=(change, change)))
    assert "Generations" in laws(stored(), dataclasses.replace(made, groups=()))


def test_a_group_nobody_knows() -> None:
    fleet = stored(groups=())
    made = dataclasses.replace(forced(fleet), groups=())
    assert "Owner" in laws(fleet, made)


def test_a_group_that_takes_no_leases() -> None:
    made = good(stored())
    (change,) = made.groups
    draining = dataclasses.replace(change, group=dataclasses.replace(change.group, phase=group.GroupPhase.DRAINING))
    assert laws(stored(), dataclasses.replace(made, groups=(draining,))) == {"Draining"}


def test_a_pool_grown_beyond_its_size() -> None:
    fleet = stored(pools=(b.a_pool(most=1),))
    extra = report.GroupChange(group=b.a_group("w8"), expected_generation=None)
    made = good(stored())
    assert laws(fleet, dataclasses.replace(made, groups=(*made.groups, extra))) == {"PoolSize"}


def test_two_leases_on_a_dedicated_worker() -> None:
    own = [b.L(name, (b.M(name, 1),), own=b.worker()).pending() for name in "ab"]
    target = b.a_group("w9", pool=None)
    fleet = b.fleet(*own, groups=(target,))
    change = report.GroupChange(group=dataclasses.replace(target, generation=2), expected_generation=1)
    made = report.Plan(
        groups=(change,),
        assignments=tuple(b.booked(each, "w9", generation=2) for each in own),
        placed=tuple(report.Placed(lease_id=each.id, group_id=ids.GroupId("w9"), message="") for each in own),
    )
    assert laws(fleet, made) == {"Pool"}


def test_a_broken_plan_is_refused_loudly() -> None:
    with pytest.raises(check.LawBroken, match="NobodyLost"):
        check.enforce(stored(), report.Plan())
