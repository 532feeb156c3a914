"""What the planner decides; that it keeps the laws whatever the fleet is."""

from __future__ import annotations

import dataclasses
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.unit.core import builders as b
from tms_server.leases import lifecycle
from tms_server.model import group, ids, lease, source
from tms_server.placement import booking, check, feasible, index, plan, report, snapshot

ALONE = lease.Sharing(exclusive=True)
TORCH = source.Framework.PYTORCH


def planned(fleet: snapshot.Fleet) -> report.Plan:
    return plan.plan(fleet, b.at(100), b.Ids())


def where(made: report.Plan) -> dict[str, str]:
    return {str(each.lease_id): str(each.group_id) for each in made.placed}


def test_the_first_lease_starts_a_worker_with_everything_decided() -> None:
    asked = b.L("a", (b.M("m", 60),)).pending()
    made = planned(b.fleet(asked))
    (started,) = made.new_groups
    assert started == dataclasses.replace(b.a_group("w1", class_="shared", created=b.at(100)), token="token-1")
    assert made.groups[0].expected_generation is None
    assert made.assignments == (
        group.Assignment(
            lease_id=asked.id,
            group_id=started.id,
            copy=0,
            generation=1,
            booked_bytes=60,
            assigned_at=b.at(100),
        ),
    )
    assert lifecycle.place(asked, b.at(100), made.placed[0].message).state is lease.LeaseState.PLACED


def test_leases_share_a_worker_while_it_has_room() -> None:
    asked = [b.L(name, (b.M(name, 40),)).pending() for name in "abc"]
    made = planned(b.fleet(*asked))
    assert where(made) == {"a": "w1", "b": "w1", "c": "w2"}
    assert [(change.group.id, change.group.generation) for change in made.groups] == [("w1", 1), ("w2", 1)]


def test_a_stored_group_is_raised_once_and_guarded() -> None:
    stored = dataclasses.replace(b.a_group("w9", class_="shared"), generation=5, emptied_at=b.at(1))
    made = planned(b.fleet(b.L("a", (b.M("m", 10),)).pending(), b.L("b", (b.M("n", 10),)).pending(), groups=(stored,)))
    (change,) = made.groups
    assert (change.expected_generation, change.group.generation, change.group.emptied_at) == (5, 6, None)
    assert {each.generation for each in made.assignments} == {6}


def test_priority_then_age_decides_who_gets_the_room() -> None:
    low = b.L("low", (b.M("a", 60),), priority=0, created=b.at(1)).pending()
    high = b.L("high", (b.M("b", 60),), priority=5, created=b.at(9)).pending()
    late = b.L("late", (b.M("c", 60),), priority=5, created=b.at(10)).pending()
    made = planned(b.fleet(low, late, high, pools=(b.a_pool(most=1),)))
    assert where(made) == {"high": "w1"}
    assert {each.lease_id: each.reason for each in made.waiting} == {"low": "NoCapacity", "late": "NoCapacity"}
    assert "needs 60 B" in made.waiting[0].message
    assert "40 B free" in made.waiting[0].message


def test_an_incompatible_class_gets_a_worker_of_its_own() -> None:
    made = planned(b.fleet(b.L("a").pending(), b.L("t", (b.M("t", 10, framework=TORCH),)).pending()))
    assert where(made) == {"a": "w1", "t": "w2"}
    assert [each.framework_class for each in made.new_groups] == ["shared", "pytorch"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (b.L("a", (b.M("m", 101),)), "needs 101 B (m 101 B declared), an empty worker holds 100 B: 1 B too few"),
        (b.L("a", (b.M("m", 0, size=51),)), "m 102 B estimated"),
        (b.L("a", (b.M("m", 1), b.M("t", 1, framework=TORCH))), "pytorch and shared"),
        (b.L("a", (b.M("m", 51),), own=b.worker(50)), "an empty worker holds 50"),
    ],
)
def test_what_can_never_fit_fails_at_once_with_the_numbers(asked: b.L, words: str) -> None:
    made = planned(b.fleet(asked.pending()))
    assert [(each.lease_id, each.reason) for each in made.failed] == [("a", "CannotFit")]
    assert words in made.failed[0].message
    assert made.groups == ()


def test_a_dedicated_lease_has_a_worker_that_nobody_joins_and_may_mix_frameworks() -> None:
    own = b.L("own", (b.M("m", 10), b.M("t", 10, framework=TORCH)), own=b.worker(50)).pending()
    made = planned(b.fleet(own, b.L("p", (b.M("p", 10),)).pending()))
    assert where(made) == {"own": "w1", "p": "w2"}
    assert [(each.pool, each.capacity_bytes) for each in made.new_groups] == [(None, 50), ("default", 100)]


def test_leases_that_are_settled_unresolved_or_leaving_are_left_alone() -> None:
    held, unresolved = b.L("held").active(), b.L("u").unresolved()
    leaving = dataclasses.replace(b.L("l").active(), state=lease.LeaseState.RELEASING)
    stored = b.a_group("w1", class_="shared")
    made = planned(b.fleet(held, unresolved, leaving, groups=(stored,), assignments=(b.booked(held, "w1"),)))
    assert (made.placed, made.failed) == ((), ())
    assert [(each.lease_id, each.reason) for each in made.waiting] == [("u", "Unresolved")]


def test_a_lease_of_a_pool_that_goes_waits() -> None:
    gone = dataclasses.replace(b.a_pool(), deleted_at=b.at(1))
    assert planned(b.fleet(b.L("a").pending(), pools=(gone,))).waiting[0].reason == "PoolGone"
    assert planned(b.fleet(b.L("a").pending(), pools=())).waiting[0].reason == "PoolGone"


def test_an_active_lease_without_a_place_gets_one() -> None:
    assert where(planned(b.fleet(b.L("a").active()))) == {"a": "w1"}


def test_bytes_that_are_still_draining_are_not_given_away() -> None:
    leaving = dataclasses.replace(b.L("l", (b.M("m", 60),)).active(), state=lease.LeaseState.RELEASING)
    stored = b.a_group("w9", class_="shared")
    waiting = b.L("a", (b.M("n", 60),)).pending()
    draining = (b.booked(leaving, "w9", draining=True),)
    full = b.fleet(leaving, waiting, pools=(b.a_pool(most=1),), groups=(stored,), assignments=draining)
    assert where(planned(full)) == {}
    assert where(planned(dataclasses.replace(full, leases=(waiting,), assignments=()))) == {"a": "w9"}


def test_company_is_found_whatever_the_order_and_never_by_starting_a_worker() -> None:
    fond = b.L("a", (b.M("n", 10),), priority=9, sharing=lease.Sharing(share_with=("team=x",))).pending()
    assert where(planned(b.fleet(fond))) == {}
    friend = b.L("z", (b.M("m", 10),), labels=(("team", "x"),)).pending()
    assert where(planned(b.fleet(fond, friend))) == {"a": "w1", "z": "w1"}


def test_company_is_found_along_a_chain() -> None:
    labels = [(("team", name),) for name in "xyz"]
    last = b.L("a", (b.M("m", 10),), priority=9, sharing=lease.Sharing(share_with=("team=y",))).pending()
    middle = b.L(
        "b", (b.M("n", 10),), priority=5, labels=labels[1], sharing=lease.Sharing(share_with=("team=x",))
    ).pending()
    first = b.L("c", (b.M("o", 10),), labels=labels[0]).pending()
    assert where(planned(b.fleet(last, middle, first))) == {"a": "w1", "b": "w1", "c": "w1"}


def test_one_worker_makes_way_for_one_lease() -> None:
    groups = (b.a_group("w8", class_="pytorch"), b.a_group("w9", class_="pytorch", created=b.at(1)))
    full = b.fleet(b.L("a").pending(), pools=(b.a_pool(most=2),), groups=groups)
    (change,) = planned(full).groups
    assert change.group.id == "w8"
    assert planned(dataclasses.replace(full, groups=groups[::-1])).groups == (change,)
    assert planned(dataclasses.replace(full, groups=(change.group, groups[1]))).groups == ()
    two = dataclasses.replace(full, leases=(*full.leases, b.L("b", (b.M("x", 1),), sharing=ALONE).pending()))
    assert [each.group.id for each in planned(two).groups] == ["w8", "w9"]


def test_an_empty_worker_of_another_class_makes_way_in_a_full_pool() -> None:
    stored = b.a_group("w9", class_="pytorch")
    full = b.fleet(b.L("a").pending(), b.L("b", (b.M("n", 1),)).pending(), pools=(b.a_pool(most=1),), groups=(stored,))
    made = planned(full)
    (change,) = made.groups
    assert (change.group.id, change.group.phase, len(made.waiting)) == ("w9", group.GroupPhase.DRAINING, 2)
    assert planned(dataclasses.replace(full, groups=(change.group,))).groups == ()


def test_a_busy_worker_of_another_class_does_not_make_way() -> None:
    torch = b.L("t", (b.M("t", 10, framework=TORCH),)).active()
    stored = b.a_group("w9", class_="pytorch")
    full = b.fleet(
        torch,
        b.L("a").pending(),
        pools=(b.a_pool(most=1),),
        groups=(stored,),
        assignments=(b.booked(torch, "w9"),),
    )
    assert planned(full).groups == ()


MODELS = st.builds(
    b.M,
    st.sampled_from(["m", "n", "o", "p"]),
    st.sampled_from([0, 10, 30, 60, 110]),
    st.sampled_from([1, 20]),
    st.sampled_from(["v1", "v2"]),
    st.sampled_from([source.Framework.ONNXRUNTIME, source.Framework.ONNXRUNTIME, TORCH]),
)
BUNDLES = st.lists(MODELS, min_size=1, max_size=3, unique_by=lambda model: model.name).map(tuple)
SELECTORS = st.sampled_from(["tier=web", "tier=batch", "l0", "blue"])
SHARING = st.builds(
    lease.Sharing,
    share_with=st.lists(SELECTORS, max_size=1).map(tuple),
    not_with=st.lists(SELECTORS, max_size=1).map(tuple),
    exclusive=st.sampled_from([False, False, False, True]),
)


@st.composite
def leases(draw: st.DrawFn, place: int) -> b.L:
    return b.L(
        f"l{place}",
        draw(BUNDLES),
        pool=draw(st.sampled_from(["default", "default", "gold", "gone"])),
        own=draw(st.sampled_from([None, None, None, b.worker(50)])),
        priority=draw(st.integers(-1, 1)),
        labels=draw(st.sampled_from([(), (("tier", "web"),), (("tier", "batch"),)])),
        sharing=draw(st.just(lease.Sharing()) | SHARING),
        created=b.at(draw(st.integers(0, 2))),
    )


@st.composite
def fleets(draw: st.DrawFn) -> snapshot.Fleet:
    """A fleet as earlier plans, ends and deaths may have left it, with new leases waiting."""
    made = [draw(leases(place)) for place in range(draw(st.integers(0, 9)))]
    pools = (b.a_pool(most=draw(st.integers(1, 3))), b.a_pool("gold", capacity=60, most=2))
    named = lease.NameBinding(
        namespace=ids.DEFAULT_NAMESPACE, name=ids.LeaseName("blue"), lease_id=ids.LeaseId("l1"), changed_at=b.START
    )
    early = draw(st.integers(0, len(made)))
    before = b.fleet(*(each.pending() for each in made[:early]), pools=pools, names=(named,))
    after = settle(before, plan.plan(before, b.at(50), b.Ids()), draw)
    late = [each.pending() for each in made[early:]]
    specs = snapshot.worker_specs([*after.leases, *late], pools)
    return dataclasses.replace(
        after,
        leases=(*after.leases, *late),
        capacities={spec: spec.resources.memory_bytes for spec in specs},
    )


def settle(fleet: snapshot.Fleet, made: report.Plan, draw: st.DrawFn) -> snapshot.Fleet:
    """Applies a plan; then some of the leases that were placed are on their way out."""
    leaving = {each.lease_id for each in made.placed if draw(st.booleans())}
    states = {each.lease_id: lease.LeaseState.ACTIVE for each in made.placed}
    states |= dict.fromkeys(leaving, lease.LeaseState.RELEASING)
    kept = {each.group.id: each.group for each in made.groups}
    return dataclasses.replace(
        fleet,
        leases=tuple(dataclasses.replace(each, state=states.get(each.id, each.state)) for each in fleet.leases),
        groups=tuple(kept.values()),
        assignments=tuple(dataclasses.replace(each, draining=each.lease_id in leaving) for each in made.assignments),
    )


class FreshIds(b.Ids):
    """Ids that no earlier plan gave out."""

    def __init__(self) -> None:
        super().__init__()
        self._made = 1000


@hypothesis.given(fleets())
@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_every_plan_keeps_the_laws_and_leaves_nothing_feasible_waiting(fleet: snapshot.Fleet) -> None:
    made = plan.plan(fleet, b.at(100), FreshIds())
    assert check.violations(fleet, made) == ()
    after = apply(fleet, made)
    books = index.of(after)
    for waiting in made.waiting:
        asked = next(each for each in fleet.leases if each.id == waiting.lease_id)
        home = books.pool_of(asked)
        assert home is None or not could_be_placed(asked, books, after, home.spec.max_workers), waiting


def could_be_placed(asked: lease.Lease, books: index.Index, after: snapshot.Fleet, most: int) -> bool:
    """Whether a worker has room for the lease after the plan, or a lone new one may be started for it."""
    home = books.pool_of(asked)
    assert home is not None
    candidate = booking.candidate(asked, home.spec.worker, books.known)
    members = books.members.get((home.namespace, home.name), ())
    fits = any(feasible.refusal(candidate, books.books[each], books.aliases) is None for each in members)
    return fits or (len(members) < most and not asked.spec.sharing.share_with)


def apply(fleet: snapshot.Fleet, made: report.Plan) -> snapshot.Fleet:
    groups = {each.id: each for each in fleet.groups} | {change.group.id: change.group for change in made.groups}
    return dataclasses.replace(
        fleet, groups=tuple(groups.values()), assignments=(*fleet.assignments, *made.assignments)
    )


@hypothesis.given(st.data(), fleets())
@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_the_same_fleet_in_any_order_gives_the_same_plan(data: st.DataObject, fleet: snapshot.Fleet) -> None:
    shuffled = dataclasses.replace(
        fleet,
        leases=tuple(data.draw(st.permutations(fleet.leases))),
        pools=fleet.pools[::-1],
        groups=tuple(data.draw(st.permutations(fleet.groups))),
        assignments=tuple(data.draw(st.permutations(fleet.assignments))),
    )
    assert plan.plan(fleet, b.at(100), FreshIds()) == plan.plan(shuffled, b.at(100), FreshIds())


def test_a_plan_that_is_applied_leaves_nothing_to_plan() -> None:
    asked = [b.L(f"l{n}", (b.M(f"m{n}", 40),)).pending() for n in range(5)]
    fleet = b.fleet(*asked)
    again = plan.plan(apply(fleet, planned(fleet)), b.at(200), FreshIds())
    assert again == report.Plan()


@pytest.mark.slow
def test_one_new_lease_in_a_fleet_of_a_thousand_is_decided_well_under_a_second() -> None:
    # A thousand leases on a thousand workers are made first; the bound is wide, the work is a few hundredths.
    held = [b.L(f"l{n:04}", (b.M(f"m{n}", 60),)).active() for n in range(1000)]
    groups = tuple(b.a_group(f"w{n:04}", class_="shared") for n in range(1000))
    assignments = tuple(b.booked(each, f"w{n:04}") for n, each in enumerate(held))
    pools = (b.a_pool(most=1000),)
    fleet = b.fleet(*held, b.L("new", (b.M("new", 30),)).pending(), pools=pools, groups=groups, assignments=assignments)
    began = time.perf_counter()
    made = plan.plan(fleet, b.at(100), FreshIds())
    assert time.perf_counter() - began < 1
    assert where(made) == {"new": "w0000"}
