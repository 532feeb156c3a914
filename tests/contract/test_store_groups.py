"""What every store holds: names, pools, groups with what belongs to them, the installation."""

from __future__ import annotations

import dataclasses
import datetime as dt
import operator

import pytest

from tests.support import stores
from tms_server.model import errors, group, ids, resources
from tms_server.ports import store as port

MINUTE = dt.timedelta(minutes=1)


async def test_names_point_at_leases_and_can_be_repointed(store: port.Store) -> None:
    await stores.add(store, stores.new_lease(1), stores.new_lease(2))
    first, second = stores.binding("a", 1), stores.binding("a", 2)
    await store.write(lambda unit: unit.set_name(first))
    await store.write(lambda unit: unit.set_name(stores.binding("b", 1)))
    await store.write(lambda unit: unit.set_name(second))
    with pytest.raises(errors.NotFound):
        await store.write(lambda unit: unit.set_name(stores.binding("c", 3)))
    assert await store.read(lambda reader: reader.get_name(first.namespace, first.name)) == second
    assert await store.read(lambda reader: reader.get_name(ids.Namespace("other"), first.name)) is None
    assert [each.name for each in await store.read(lambda reader: reader.names(stores.NAMESPACE))] == ["a", "b"]
    assert await store.read(lambda reader: reader.names(ids.Namespace("other"))) == ()
    assert await store.write(lambda unit: unit.delete_name(first.namespace, first.name)) is True
    assert await store.write(lambda unit: unit.delete_name(first.namespace, first.name)) is False


async def test_pools_are_added_replaced_and_deleted(store: port.Store) -> None:
    pool = stores.new_pool()
    other = dataclasses.replace(
        stores.new_pool("big"), namespace=ids.Namespace("other"), created_at=stores.NOW - MINUTE
    )
    await stores.for_each(store, (pool, other), lambda unit, each: unit.put_pool(each))
    leaving = dataclasses.replace(pool, deleted_at=stores.NOW + MINUTE)
    await store.write(lambda unit: unit.put_pool(leaving))
    assert await store.read(lambda reader: reader.pools()) == (other, leaving)
    assert await store.read(lambda reader: reader.pools(pool.namespace)) == (leaving,)
    assert await store.read(lambda reader: reader.get_pool(pool.namespace, pool.name)) == leaving
    assert await store.read(lambda reader: reader.get_pool(other.namespace, pool.name)) is None
    assert await store.write(lambda unit: unit.delete_pool(pool.namespace, pool.name)) is True
    assert await store.write(lambda unit: unit.delete_pool(pool.namespace, pool.name)) is False


async def test_a_group_is_replaced_only_at_the_expected_generation(store: port.Store) -> None:
    new = stores.new_group()
    await store.write(lambda unit: unit.put_group(new, None))
    changed = dataclasses.replace(new, generation=2, framework_class="shared", phase=group.GroupPhase.DRAINING)
    await store.write(lambda unit: unit.put_group(changed, 1))
    for expected in (None, 1, 3):
        with pytest.raises(errors.Conflict):
            await store.write(operator.methodcaller("put_group", new, expected))
    with pytest.raises(errors.Conflict):
        await store.write(lambda unit: unit.put_group(stores.new_group("unknown"), 1))
    assert await store.read(lambda reader: (reader.get_group(new.id), reader.groups())) == (changed, (changed,))


async def test_assignments_need_their_lease_and_group_and_keep_the_group(store: port.Store) -> None:
    new = stores.new_assignment(1)
    await stores.add(store, stores.new_lease(1))
    with pytest.raises(errors.NotFound):
        await store.write(lambda unit: unit.put_assignment(new))
    await store.write(lambda unit: unit.put_group(stores.new_group(), None))
    with pytest.raises(errors.NotFound):
        await store.write(lambda unit: unit.put_assignment(stores.new_assignment(2)))
    draining = dataclasses.replace(new, draining=True)
    second_copy = dataclasses.replace(new, copy=1)
    await stores.for_each(store, (new, second_copy, draining), lambda unit, each: unit.put_assignment(each))
    assert await store.read(lambda reader: reader.assignments()) == (draining, second_copy)
    with pytest.raises(errors.FailedPrecondition):
        await store.write(lambda unit: unit.delete_group(new.group_id))
    await stores.for_each(store, (0, 1, 2), lambda unit, copy: unit.delete_assignment(new.lease_id, new.group_id, copy))
    await store.write(lambda unit: unit.delete_group(new.group_id))
    assert await store.read(lambda reader: (reader.groups(), reader.assignments())) == ((), ())


async def test_reports_are_the_last_word_of_workers_whose_groups_exist(store: port.Store) -> None:
    report = stores.new_report
    await stores.for_each(store, ("g2", "g1"), lambda unit, name: unit.put_group(stores.new_group(name), None))
    await store.write(
        lambda unit: unit.put_reports([report("g1"), report("g2", "b"), report("gone"), report("g2", "a")])
    )
    await store.write(lambda unit: unit.put_reports([report("g1", epoch=2), report("g2", "b", epoch=3)]))
    expected = (report("g1", epoch=2), report("g2", "a"), report("g2", "b", epoch=3))
    assert await store.read(lambda reader: reader.reports()) == expected
    await store.write(lambda unit: unit.delete_group(ids.GroupId("g2")))
    assert await store.read(lambda reader: reader.reports()) == expected[:1]


async def test_measurements_keep_the_greatest(store: port.Store) -> None:
    def measured(amount: int, worker: str = "w") -> group.Measurement:
        return group.Measurement(
            source_digest=ids.Digest("d"), config_digest="c", worker=worker, bytes=amount, measured_at=stores.NOW
        )

    for new in (measured(5), measured(9), measured(7), measured(1, "other")):
        await store.write(operator.methodcaller("put_measurement", new))
    assert set(await store.read(lambda reader: reader.measurements())) == {measured(9), measured(1, "other")}


async def test_endpoints_belong_to_owners(store: port.Store) -> None:
    first, second = resources.Endpoint("127.64.0.1", 1, 2, 3), resources.Endpoint("127.64.0.2", 4, 5, 6)
    await stores.for_each(store, ("lease/a", "group/b"), lambda unit, owner: unit.put_endpoint(owner, first))
    await store.write(lambda unit: unit.put_endpoint("lease/a", second))
    await stores.for_each(store, ("group/b", "unknown"), lambda unit, owner: unit.delete_endpoint(owner))
    assert await store.read(lambda reader: reader.endpoints()) == {"lease/a": second}


async def test_the_installation_is_made_once_and_says_when_it_was_alive(store: port.Store) -> None:
    made = await store.read(lambda reader: reader.installation())
    assert made == port.Installation(ids.InstallationId("installation-1"), 1, stores.NOW)
    await store.write(lambda unit: unit.touch(stores.NOW + MINUTE))
    touched = await store.read(lambda reader: reader.installation())
    assert touched == dataclasses.replace(made, alive_at=stores.NOW + MINUTE)
