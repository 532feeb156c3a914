"""Which workers are launched, retired, added, kept empty and removed."""

from __future__ import annotations

import dataclasses

import hypothesis
from hypothesis import strategies as st

from tests.unit.core import builders as b
from tms_server.fleet import diff, shrink
from tms_server.model import group, ids, pool

NEW, OLD = b.a_group("w2", created=b.at(5)), b.a_group("w1", created=b.at(1))
HELD = b.L("a").active()


def stored(*pools: pool.Pool, groups: tuple[group.WorkerGroup, ...] = (), busy: tuple[str, ...] = ()) -> shrink.Stored:
    return shrink.Stored(
        pools=pools,
        groups=groups,
        assignments=tuple(b.booked(HELD, group_id) for group_id in busy),
        capacities={each.spec.worker: 77 for each in pools},
    )


def resize(at: float, given: shrink.Stored) -> shrink.Resize:
    return shrink.resize(given, b.at(at), b.Ids())


def test_what_is_stored_is_launched_and_what_is_not_is_retired_first() -> None:
    found = diff.actions((NEW, OLD), [ids.GroupId("w9"), ids.GroupId("w8")])
    assert found == (diff.Retire(ids.GroupId("w8")), diff.Retire(ids.GroupId("w9")), diff.Launch(OLD), diff.Launch(NEW))
    assert diff.actions((NEW, OLD), [OLD.id, NEW.id]) == ()


def test_a_pool_gets_its_least_workers() -> None:
    found = resize(9, stored(b.a_pool(least=2), groups=(OLD,)))
    assert [(each.pool, each.capacity_bytes, each.framework_class, each.created_at) for each in found.add] == [
        ("default", 77, None, b.at(9))
    ]
    assert found.remove == ()


def test_empty_workers_beyond_the_least_go_at_once_without_a_linger_youngest_first() -> None:
    found = resize(9, stored(b.a_pool(least=1), groups=(NEW, OLD)))
    assert found.remove == (NEW,)
    assert resize(9, stored(b.a_pool(), groups=(NEW, OLD), busy=("w1",))).remove == (NEW,)


def test_a_worker_with_a_draining_assignment_is_not_empty() -> None:
    given = dataclasses.replace(stored(b.a_pool(), groups=(OLD,)), assignments=(b.booked(HELD, "w1", draining=True),))
    assert resize(9, given) == shrink.Resize()


def test_a_linger_is_counted_from_when_the_worker_was_seen_empty() -> None:
    lingering = b.a_pool(linger=10)
    found = resize(9, stored(lingering, groups=(OLD,)))
    assert (found.mark, found.remove, found.next_at) == ((dataclasses.replace(OLD, emptied_at=b.at(9)),), (), b.at(19))
    again = resize(18, stored(lingering, groups=found.mark))
    assert (again.mark, again.remove, again.next_at) == ((), (), b.at(19))
    assert resize(19, stored(lingering, groups=found.mark)).remove == found.mark


def test_dedicated_draining_and_orphaned_workers_go_at_once() -> None:
    own = b.a_group("w1", pool=None)
    gone = b.a_group("w2", pool="gone")
    draining = b.a_group("w3", phase=group.GroupPhase.DRAINING)
    deleted = dataclasses.replace(b.a_pool("old", least=3), deleted_at=b.at(1))
    of_deleted = b.a_group("w4", pool="old")
    found = resize(9, stored(b.a_pool(linger=99), deleted, groups=(own, gone, draining, of_deleted)))
    assert found.remove == (own, gone, draining, of_deleted)
    assert found.add == ()


@hypothesis.given(
    st.integers(0, 4), st.integers(0, 6), st.sets(st.integers(0, 5)), st.integers(0, 20), st.integers(0, 40)
)
def test_after_a_resize_a_pool_has_its_least_workers_and_all_its_busy_ones(
    least: int, count: int, busy: set[int], linger: int, now: int
) -> None:
    groups = tuple(b.a_group(f"w{n}", created=b.at(n)) for n in range(count))
    home = b.a_pool(least=least, most=6, linger=linger)
    given = stored(home, groups=groups, busy=tuple(f"w{n}" for n in busy if n < count))
    found = resize(now, given)
    left = {each.id for each in groups} - {each.id for each in found.remove}
    assert len(left) + len(found.add) >= least
    assert {each.group_id for each in given.assignments} <= left
    assert found == resize(now, dataclasses.replace(given, groups=groups[::-1]))
