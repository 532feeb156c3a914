"""What every store holds: leases, their history, and forgetting them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import operator
from typing import Any

import pytest

from tests.support import stores
from tms_server.model import errors, ids, lease, resources
from tms_server.ports import store as port

STATE = lease.LeaseState
MINUTE = dt.timedelta(minutes=1)


async def saved(store: port.Store, number: int, **changes: Any) -> lease.Lease:
    """Changes fields of a stored lease."""

    def work(unit: port.UnitOfWork) -> lease.Lease:
        stored = unit.get_lease(stores.lease_id(number))
        assert stored is not None
        return unit.save_lease(dataclasses.replace(stored, **changes))

    return await store.write(work)


def ended_at(instant: dt.datetime) -> dict[str, Any]:
    end = lease.LeaseEnd(state=STATE.RELEASED, reason="Released", message="", actor="tester", at=instant)
    return {"state": STATE.RELEASED, "end": end}


async def test_a_lease_is_made_once_by_id_and_by_request(store: port.Store) -> None:
    new = stores.new_lease(1)
    await store.write(lambda unit: unit.add_lease(new, "body", stores.EVENT))
    same_request = dataclasses.replace(stores.new_lease(2), request_id=new.request_id)
    for taken in (new, dataclasses.replace(new, request_id="another"), same_request):
        with pytest.raises(errors.AlreadyExists):
            await stores.add(store, taken)
    await stores.add(store, dataclasses.replace(same_request, actor="someone else"))
    await stores.add(store, dataclasses.replace(stores.new_lease(3, "other"), request_id=new.request_id))

    def requests(reader: port.Reader) -> list[tuple[ids.LeaseId, str] | None]:
        return [reader.find_request(new.namespace, "tester", request) for request in (new.request_id, "request-2")]

    assert await store.read(requests) == [(new.id, "body"), None]


async def test_a_request_refused_inside_a_unit_leaves_nothing_of_the_lease(store: port.Store) -> None:
    await stores.add(store, stores.new_lease(1))
    again = dataclasses.replace(stores.new_lease(2, labels={"a": "b"}), request_id="request-1")

    def work(unit: port.UnitOfWork) -> ids.LeaseId:
        try:
            return unit.add_lease(again, "", stores.EVENT).id
        except errors.AlreadyExists:
            found = unit.find_request(again.namespace, again.actor, again.request_id)
            assert found is not None
            return found[0]

    assert await store.write(work) == stores.lease_id(1)
    assert await store.read(lambda reader: reader.get_lease(again.id)) is None
    assert await store.read(lambda reader: reader.leases(port.LeaseQuery(labels={"a": "b"}))) == ()


async def test_a_save_needs_the_stored_revision(store: port.Store) -> None:
    (added,) = await stores.add(store, stores.new_lease(1))
    placed = dataclasses.replace(added, state=STATE.PLACED, generation=2, credit=MINUTE)
    event = dataclasses.replace(stores.EVENT, type="Placed")
    first = await store.write(lambda unit: unit.save_lease(placed, event))
    assert first == dataclasses.replace(placed, revision=2)
    for stale in (placed, dataclasses.replace(placed, id=ids.LeaseId("unknown"))):
        with pytest.raises(errors.Conflict):
            await store.write(operator.methodcaller("save_lease", stale))
    second = await store.write(lambda unit: unit.save_lease(first))
    history = await store.read(lambda reader: reader.events(added.id))
    assert [(each.revision, each.type, each.state) for each in history] == [
        (1, "Created", STATE.PENDING),
        (2, "Placed", STATE.PLACED),
        (3, "Changed", STATE.PLACED),
    ]
    assert await store.read(lambda reader: reader.get_lease(added.id)) == second


async def test_a_renewal_writes_only_its_times(store: port.Store) -> None:
    (added,) = await stores.add(store, stores.new_lease(1))
    await store.write(lambda unit: unit.renew_lease(added.id, stores.NOW + MINUTE, None))
    await store.write(lambda unit: unit.renew_lease(added.id, None, stores.NOW))
    expected = dataclasses.replace(added, renewed_until=stores.NOW + MINUTE, last_activity_at=stores.NOW)
    assert await store.read(lambda reader: reader.get_lease(added.id)) == expected
    await store.write(lambda unit: unit.renew_lease(added.id, stores.NOW, None))
    shorter = dataclasses.replace(expected, renewed_until=stores.NOW)
    assert await store.read(lambda reader: reader.get_lease(added.id)) == shorter
    assert await store.read(lambda reader: (reader.revision(), len(reader.events(added.id)))) == (1, 1)
    with pytest.raises(errors.NotFound):
        await store.write(lambda unit: unit.renew_lease(ids.LeaseId("unknown"), stores.NOW, None))


async def test_a_save_does_not_lose_renewals_since_its_read(store: port.Store) -> None:
    (added,) = await stores.add(store, stores.new_lease(1))
    await store.write(lambda unit: unit.renew_lease(added.id, stores.NOW + MINUTE, stores.NOW))
    stale_times = dataclasses.replace(added, state=STATE.PLACED, last_activity_at=stores.NOW + MINUTE)
    answered = await store.write(lambda unit: unit.save_lease(stale_times))
    assert answered == await store.read(lambda reader: reader.get_lease(added.id))
    assert (answered.renewed_until, answered.last_activity_at) == (stores.NOW + MINUTE, stores.NOW + MINUTE)


def _varied_lease(number: int) -> lease.Lease:
    worker = lease.Dedicated(resources.WorkerSpec(image="worker:1"))
    new = stores.new_lease(
        number,
        namespace="default" if number % 2 else "other",
        labels={"team": f"t{number % 3}", **({"hot": "yes"} if number % 4 == 0 else {})},
        placement=worker if number % 5 == 0 else lease.InPool(ids.PoolName(f"p{number % 2}")),
        parent_id=stores.lease_id(0) if number % 3 == 0 and number else None,
    )
    states = [STATE.PENDING, STATE.ACTIVE, STATE.RELEASING, STATE.FAILED]
    # Several share an instant, so that the id has to decide.
    return dataclasses.replace(new, state=states[number % 4], created_at=stores.NOW + dt.timedelta(seconds=number // 4))


def _matches(query: port.LeaseQuery, each: lease.Lease) -> bool:
    placement = each.spec.placement
    return (
        query.namespace in (None, each.namespace)
        and (not query.states or each.state in query.states)
        and query.labels.items() <= each.spec.labels.items()
        and query.pool in (None, placement.pool if isinstance(placement, lease.InPool) else "")
        and query.parent_id in (None, each.spec.parent_id)
        and (not query.living_only or each.state.living)
        and (query.before is None or (each.created_at, each.id) < query.before)
    )


async def test_lists_hold_exactly_what_matches_newest_first(store: port.Store) -> None:
    stored = await stores.add(store, *map(_varied_lease, range(40)))
    newest_first = sorted(stored, key=lambda each: (each.created_at, each.id), reverse=True)
    choices: list[list[dict[str, Any]]] = [
        [{}, {"namespace": "other"}],
        [{}, {"states": frozenset({STATE.PENDING, STATE.FAILED})}],
        [{}, {"labels": {"team": "t1"}}, {"labels": {"team": "t0", "hot": "yes"}}, {"labels": {"team": "none"}}],
        [{}, {"pool": ids.PoolName("p1")}, {"parent_id": stores.lease_id(0)}],
        [{}, {"living_only": True}, {"before": (stored[22].created_at, stored[22].id)}],
    ]
    for chosen in itertools.product(*choices):
        query = port.LeaseQuery(**{name: value for choice in chosen for name, value in choice.items()})
        expected = tuple(each for each in newest_first if _matches(query, each))
        assert await store.read(operator.methodcaller("leases", query)) == expected
    unended = tuple(
        sorted((each for each in stored if not each.state.ended), key=lambda each: (each.created_at, each.id))
    )
    assert await store.read(lambda reader: reader.unended_leases()) == unended


async def test_pages_neither_skip_nor_double_while_leases_come(store: port.Store) -> None:
    stored = await stores.add(store, *map(_varied_lease, range(30)))
    seen: list[lease.Lease] = []
    query = port.LeaseQuery(limit=7)
    while page := await store.read(operator.methodcaller("leases", query)):
        seen += page
        query = dataclasses.replace(query, before=(page[-1].created_at, page[-1].id))
        await stores.add(store, stores.new_lease(1000 + len(seen)))
    assert sorted(seen, key=lambda each: each.id) == list(stored)


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_is_refused(store: port.Store, limit: int) -> None:
    with pytest.raises(errors.InvalidField, match="limit"):
        await store.read(lambda reader: reader.leases(port.LeaseQuery(limit=limit)))
    with pytest.raises(errors.InvalidField, match="limit"):
        await store.read(lambda reader: reader.changes(0, limit))


async def test_forgetting_takes_old_ended_leases_with_all_that_was_theirs(store: port.Store) -> None:
    await stores.add(store, *(stores.new_lease(number, labels={"n": str(number)}) for number in range(4)))
    await saved(store, 0, **ended_at(stores.NOW))
    await saved(store, 1, **ended_at(stores.NOW + MINUTE))
    await saved(store, 2, **(ended_at(stores.NOW) | {"state": STATE.RELEASING}))
    address = resources.Endpoint("127.64.0.1", 8000, 8001, 8002)

    def bind(unit: port.UnitOfWork) -> None:
        for number in (0, 3):
            name = ids.LeaseName(f"name{number}")
            unit.set_name(stores.binding(name, number))
            unit.put_endpoint(f"lease/{stores.lease_id(number)}", address)
            unit.put_endpoint(f"name/{stores.NAMESPACE}/{name}", address)

    await store.write(bind)
    assert await store.write(lambda unit: unit.forget_before(stores.NOW + MINUTE)) == 1
    assert await store.write(lambda unit: unit.forget_before(stores.NOW + MINUTE)) == 0

    def left(reader: port.Reader) -> dict[str, object]:
        return {
            "leases": [each.id for each in reader.leases(port.LeaseQuery())],
            "labelled": reader.leases(port.LeaseQuery(labels={"n": "0"})),
            "events": reader.events(stores.lease_id(0)),
            "request": reader.find_request(stores.NAMESPACE, "tester", "request-0"),
            "names": [each.name for each in reader.names()],
            "endpoints": sorted(reader.endpoints()),
        }

    assert await store.read(left) == {
        "leases": [stores.lease_id(number) for number in (3, 2, 1)],
        "labelled": (),
        "events": (),
        "request": None,
        "names": ["name3"],
        "endpoints": ["lease/l000003", "name/default/name3"],
    }


async def test_history_that_was_forgotten_or_never_was_is_refused(store: port.Store) -> None:
    await stores.add(store, stores.new_lease(0), stores.new_lease(1))
    await saved(store, 0, **ended_at(stores.NOW))
    await saved(store, 1, state=STATE.PLACED)
    assert len(await store.read(lambda reader: reader.changes(0, 10))) == 4
    await store.write(lambda unit: unit.forget_before(stores.NOW + MINUTE))
    for revision in (0, 2, 5):
        with pytest.raises(errors.RevisionGone):
            await store.read(operator.methodcaller("changes", revision, 10))
    kept = await store.read(lambda reader: (reader.changes(3, 10), reader.changes(4, 10)))
    assert [[event.revision for event in events] for events in kept] == [[4], []]


async def test_an_ended_lease_with_an_assignment_is_not_forgotten(store: port.Store) -> None:
    await stores.add(store, stores.new_lease(0))
    await store.write(lambda unit: unit.put_group(stores.new_group(), None))
    await store.write(lambda unit: unit.put_assignment(stores.new_assignment(0)))
    await saved(store, 0, **ended_at(stores.NOW))
    assert await store.write(lambda unit: unit.forget_before(stores.NOW + MINUTE)) == 0
    await store.write(lambda unit: unit.delete_assignment(stores.lease_id(0), ids.GroupId("g1"), 0))
    assert await store.write(lambda unit: unit.forget_before(stores.NOW + MINUTE)) == 1
