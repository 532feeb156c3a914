"""What every store holds: names, pools, groups with what belongs to them, the installation."""

from __future__ import annotations

import dataclasses
import datetime as dt
import operator

import pytest

from tests.support import stores
from tms_server.model import errors, group, ids, image, resources
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
    await store.write(lambda unit: unit.delete_report(ids.WorkerId(ids.GroupId("g2"), ids.ReplicaId("b"))))
    await store.write(lambda unit: unit.delete_report(ids.WorkerId(ids.GroupId("g2"), ids.ReplicaId("gone"))))
    assert await store.read(lambda reader: reader.reports()) == expected[:2]
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


async def test_rules_for_images_are_kept_by_their_pattern(store: port.Store) -> None:
    def rule(pattern: str, actor: str = "a") -> image.ImageRule:
        return image.ImageRule(pattern=pattern, created_at=stores.NOW, actor=actor)

    rules = (rule("registry/b*"), rule("registry/a"), rule("registry/b*", actor="later"))
    await stores.for_each(store, rules, lambda unit, each: unit.put_image_rule(each))
    assert await store.read(lambda reader: reader.image_rules()) == (rules[1], rules[0])
    assert await store.write(lambda unit: unit.delete_image_rule("registry/a")) is True
    assert await store.write(lambda unit: unit.delete_image_rule("registry/a")) is False
    assert await store.read(lambda reader: reader.image_rules()) == (rules[0],)


async def test_there_is_one_leader(store: port.Store) -> None:
    assert await store.read(lambda reader: reader.leader()) is None
    leaders = port.Leader(term=1, holder="a"), port.Leader(term=2, holder="b", beat=7)
    await stores.for_each(store, leaders, lambda unit, each: unit.put_leader(each))
    assert await store.read(lambda reader: reader.leader()) == leaders[1]


async def test_sizes_of_leases_and_groups_are_kept(store: port.Store) -> None:
    (added,) = await stores.add(store, stores.new_lease(1))
    grown = dataclasses.replace(added, wanted_copies=3)
    saved = await store.write(lambda unit: unit.save_lease(grown))
    new = dataclasses.replace(stores.new_group(), replicas=4)
    await store.write(lambda unit: unit.put_group(new, None))
    assert await store.read(lambda reader: reader.get_lease(added.id)) == saved
    assert saved.wanted_copies == 3
    assert await store.read(lambda reader: reader.groups()) == (new,)


async def test_text_that_no_database_likes_harms_nothing(store: port.Store) -> None:
    (added,) = await stores.add(store, stores.new_lease(1, labels={"a": "nul \0"}))
    odd = dataclasses.replace(stores.EVENT, message="nul \0, quote ', percent %s, snowman \u2603")
    await store.write(lambda unit: unit.save_lease(added, odd))
    history = await store.read(lambda reader: reader.events(added.id))
    assert history[-1].message.replace("\0", "\ufffd") == "nul \ufffd, quote ', percent %s, snowman \u2603"
