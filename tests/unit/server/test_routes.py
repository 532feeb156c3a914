"""On a backend that leads clients to replicas: who is led where, and what a lease is under several workers."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from tests.support import middle
from tms_server.model import errors, group, ids, lease
from tms_server.ports import backend as backend_module
from tms_server.services import views

S = lease.LeaseState


def routed(world: middle.World, lease_id: str) -> set[str]:
    """Replicas that clients of the lease are led to."""
    return {w.replica for route in world.backend.world.routes if route.lease_id == lease_id for w in route.workers}


def owners(world: middle.World) -> set[str]:
    return {owner for route in world.backend.world.routes for owner in route.owners}


async def with_two(world: middle.World, *names: str) -> tuple[views.LeaseView, ids.GroupId, list[ids.ReplicaId]]:
    """An ACTIVE lease in a worker group that was given a second, empty replica."""
    active = await world.active(*names)
    assert active.group_id is not None
    world.backend.add_replica(active.group_id, ids.ReplicaId("second"))
    await world.settle()
    return active, active.group_id, list(world.replicas(active.group_id))


async def said(world: middle.World, lease_id: str) -> tuple[bool, str]:
    serving = (await world.get(lease_id)).lease.condition("Serving")
    assert serving is not None
    return serving.status, serving.reason


async def test_a_lease_is_led_to_its_worker_before_it_is_active(led: middle.World) -> None:
    placed = await led.placed()
    assert placed.group_id is not None
    await led.lead()
    assert routed(led, placed.lease.id) == set()
    (replica,) = led.replicas(placed.group_id)
    await led.hear(placed.group_id, replica=replica)
    assert (await led.get(placed.lease.id)).lease.state is S.LOADING
    await led.settle()
    assert routed(led, placed.lease.id) == {replica}
    assert (await led.get(placed.lease.id)).lease.state is S.ACTIVE


async def test_a_new_replica_gets_clients_once_it_says_that_it_is_ready(led: middle.World) -> None:
    active, group_id, (first, second) = await with_two(led)
    assert routed(led, active.lease.id) == {first}
    await led.hear(group_id, replica=second, models=())
    await led.settle()
    assert routed(led, active.lease.id) == {first}
    await led.hear(group_id, replica=second)
    await led.settle()
    assert routed(led, active.lease.id) == {first, second}
    assert (await led.get(active.lease.id)).ready_replicas == 2


async def test_one_replica_that_lost_its_models_is_left_out_and_the_lease_serves_on(led: middle.World) -> None:
    active, group_id, (first, second) = await with_two(led)
    await led.hear(group_id, replica=second)
    await led.settle()
    await led.hear(group_id, replica=first, server_ready=False)
    await led.settle()
    assert routed(led, active.lease.id) == {second}
    assert await said(led, active.lease.id) == (True, "Serving")
    await led.hear(group_id, replica=second, server_ready=False)
    await led.settle()
    assert await said(led, active.lease.id) == (False, "ServerDown")


async def test_a_replica_whose_stream_is_lost_keeps_its_clients_until_it_is_gone(led: middle.World) -> None:
    active, group_id, (first, _) = await with_two(led)
    led.live.lose(ids.WorkerId(group_id, first), led.clock.now())
    led.advance(minutes=5)
    await led.settle()
    assert routed(led, active.lease.id) == {first}
    assert await said(led, active.lease.id) == (True, "Serving")
    led.backend.lose_replica(group_id, first)
    await led.settle()
    assert routed(led, active.lease.id) == set()
    assert (await said(led, active.lease.id))[0] is False


async def test_a_server_that_starts_anew_takes_nobodys_clients_away(led: middle.World) -> None:
    active, _, (first, _) = await with_two(led)
    await led.beat()
    again = middle.World(led.store, led.clock, routes=True)
    again.backend.world = led.backend.world
    again.live.restore((), led.clock.now())
    await again.settle()
    assert routed(again, active.lease.id) == {first}


async def test_models_are_let_go_of_only_after_the_last_client_was_led_elsewhere(led: middle.World) -> None:
    active = await led.active()
    assert active.group_id is not None
    (replica,) = led.replicas(active.group_id)
    stored = (await led.stored(lambda reader: reader.groups()))[0]
    session = await led.agents.connect(active.group_id, replica, stored.token)
    told = session.desired()
    first = await anext(told)
    assert (len(first.wanted.models), first.wanted.endpoints, first.routed) == (1, (), True)
    await led.leases.release(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id, "")
    due = await led.agents.push()
    assert due is not None
    assert session.withheld_since == led.clock.now()
    await led.lead()
    assert routed(led, active.lease.id) == set()
    assert await led.agents.push() is None
    assert (await anext(told)).wanted.models == ()


async def test_a_router_that_does_not_come_on_holds_a_worker_up_for_a_bounded_time(led: middle.World) -> None:
    active = await led.active()
    assert active.group_id is not None
    (replica,) = led.replicas(active.group_id)
    stored = (await led.stored(lambda reader: reader.groups()))[0]
    session = await led.agents.connect(active.group_id, replica, stored.token)
    told = session.desired()
    await anext(told)
    await led.leases.release(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id, "")
    await led.agents.push()
    led.advance(seconds=30)
    await led.agents.push()
    assert (await anext(told)).wanted.models == ()


async def test_a_replica_may_call_itself_ready_once_its_leases_are_led_there(led: middle.World) -> None:
    placed = await led.placed()
    assert placed.group_id is not None
    (replica,) = led.replicas(placed.group_id)
    stored = (await led.stored(lambda reader: reader.groups()))[0]
    session = await led.agents.connect(placed.group_id, replica, stored.token)
    told = session.desired()
    assert (await anext(told)).routed is False
    await led.hear(placed.group_id, replica=replica)
    await led.settle()
    assert (await anext(told)).routed is True


async def test_a_replica_that_cannot_serve_for_good_is_not_held_up_by_it(led: middle.World) -> None:
    active, group_id, (_, second) = await with_two(led)
    stored = (await led.stored(lambda reader: reader.groups()))[0]
    session = await led.agents.connect(group_id, second, stored.token)
    told = session.desired()
    assert (await anext(told)).routed is False
    report = await led.report(group_id)
    failed = dataclasses.replace(report.models[0], state=group.ModelState.FAILED, reason="BadModel")
    await led.hear(group_id, replica=second, models=(failed,))
    await led.settle()
    assert (await anext(told)).routed is True
    assert await said(led, active.lease.id) == (True, "Serving")


async def test_a_replica_that_the_backend_knows_no_more_is_let_go(led: middle.World) -> None:
    _, group_id, (first, second) = await with_two(led)
    stored = (await led.stored(lambda reader: reader.groups()))[0]
    session = await led.agents.connect(group_id, second, stored.token)
    told = session.desired()
    await anext(told)
    await led.hear(group_id, replica=second)
    led.backend.lose_replica(group_id, second)
    await led.settle()
    with pytest.raises(errors.NotFound):
        await anext(told)
    with pytest.raises(errors.NotFound):
        await led.agents.connect(group_id, second, stored.token)
    await led.sweep()
    assert led.live.heard(ids.WorkerId(group_id, second)) is None
    assert [each.replica for each in led.live.reports()] == [first]


async def test_a_definite_failure_ends_a_lease_only_when_every_replica_has_failed(led: middle.World) -> None:
    placed = await led.placed()
    assert placed.group_id is not None
    led.backend.add_replica(placed.group_id, ids.ReplicaId("second"))
    await led.settle()
    first, second = led.replicas(placed.group_id)
    report = await led.report(placed.group_id)
    failed = dataclasses.replace(report.models[0], state=group.ModelState.FAILED, reason="BadModel")
    await led.hear(placed.group_id, replica=first, models=(failed,))
    assert (await led.get(placed.lease.id)).lease.state is S.PLACED
    await led.hear(placed.group_id, replica=second, models=(failed,))
    assert (await led.get(placed.lease.id)).lease.state is S.RELEASING


async def test_every_replica_owes_its_proof_of_idleness(led: middle.World) -> None:
    active, group_id, (first, second) = await with_two(led)
    await led.hear(group_id, replica=second)
    await led.settle()
    led.advance(minutes=10)
    await led.hear(group_id, replica=first)
    await led.expire()
    assert (await led.get(active.lease.id)).lease.state is S.ACTIVE
    await led.hear(group_id, replica=second)
    await led.expire()
    assert (await led.get(active.lease.id)).lease.state is S.RELEASING


async def test_use_of_any_replica_is_use(led: middle.World) -> None:
    active, group_id, (first, second) = await with_two(led)
    led.advance(minutes=10)
    report = await led.report(group_id)
    busy = dataclasses.replace(report.models[0], in_flight=1)
    await led.hear(group_id, replica=second, models=(busy,))
    await led.hear(group_id, replica=first)
    await led.expire()
    kept = await led.get(active.lease.id)
    assert (kept.lease.state, kept.lease.last_activity_at) == (S.ACTIVE, led.clock.now())


async def test_memory_is_free_once_every_replica_that_exists_has_confirmed(led: middle.World) -> None:
    active, group_id, (first, second) = await with_two(led)
    await led.hear(group_id, replica=second)
    await led.leases.release(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id, "")
    await led.settle()
    await led.hear(group_id, replica=first)
    assert (await led.get(active.lease.id)).lease.state is S.RELEASING
    led.backend.lose_replica(group_id, second)
    await led.fleet()
    await led.digest()
    assert (await led.get(active.lease.id)).lease.state is S.RELEASED


async def test_a_name_keeps_its_address_when_its_lease_has_none(led: middle.World) -> None:
    active = await led.active()
    await led.names.set(middle.CALLER, ids.DEFAULT_NAMESPACE, ids.LeaseName("blue"), active.lease.id)
    await led.settle()
    assert owners(led) == {f"lease/{active.lease.id}", "name/default/blue"}
    await led.leases.release(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id, "")
    await led.settle()
    assert active.group_id is not None
    await led.hear(active.group_id, replica=led.replicas(active.group_id)[0])
    await led.settle()
    assert owners(led) == {"name/default/blue"}
    assert routed(led, active.lease.id) == set()


async def test_a_name_that_belongs_to_somebody_else_is_told_and_taken_when_it_is_free(led: middle.World) -> None:
    active = await led.active()
    led.backend.world.strangers.add("name/default/blue")
    await led.names.set(middle.CALLER, ids.DEFAULT_NAMESPACE, ids.LeaseName("blue"), active.lease.id)
    for _ in range(3):
        await led.settle()
    told = (await led.get(active.lease.id)).lease.condition("Published")
    assert told is not None
    assert (told.status, told.reason) == (False, "NameTaken")
    led.backend.world.strangers.clear()
    await led.settle()
    told = (await led.get(active.lease.id)).lease.condition("Published")
    assert told is not None
    assert told.status
    history = await led.leases.events(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id)
    assert [each.type for each in history].count("Unpublished") == 1


@pytest.mark.parametrize("where", ["group", "launch"])
async def test_a_trouble_of_the_backend_is_told_once_and_passes(led: middle.World, where: str) -> None:
    if where == "launch":
        led.backend.fail_launches(errors.ResourceExhausted("0/3 nodes"))
        placed = await led.placed()
    else:
        placed = await led.placed()
    assert placed.group_id is not None
    if where == "group":
        led.backend.trouble(placed.group_id, backend_module.Trouble("NoRoom", "0/3 nodes"))
    await led.settle()
    await led.settle()
    shown = (await led.get(placed.lease.id)).lease.condition("ModelsReady")
    assert shown is not None
    assert (shown.status, shown.reason, shown.message) == (False, "NoRoom", "0/3 nodes")
    why = await led.leases.explain(middle.CALLER, ids.DEFAULT_NAMESPACE, placed.lease.id)
    assert "0/3 nodes" in why.trouble
    led.backend.fail_launches(None)
    if where == "group":
        led.backend.trouble(placed.group_id, None)
    await led.settle()
    shown = (await led.get(placed.lease.id)).lease.condition("ModelsReady")
    assert shown is not None
    assert shown.reason == "Starting"
    history = await led.leases.events(middle.CALLER, ids.DEFAULT_NAMESPACE, placed.lease.id)
    assert [each.type for each in history] == ["Created", "Placed", "Trouble"]


async def test_an_active_lease_without_a_replica_says_why(led: middle.World) -> None:
    active, group_id, replicas = await with_two(led)
    for each in replicas:
        led.backend.lose_replica(group_id, each)
    led.backend.trouble(group_id, backend_module.Trouble("Unschedulable", "Insufficient nvidia.com/gpu"))
    await led.settle()
    assert await said(led, active.lease.id) == (False, "Unschedulable")


async def test_a_worker_that_dies_leaves_a_line_at_once(world: middle.World) -> None:
    active = await world.active()
    assert active.group_id is not None
    world.backend.hold_down(active.group_id, "worker: killed by SIGKILL")
    await world.fleet()
    await world.digest()
    assert await said(world, active.lease.id) == (False, "WorkerLost")
    world.backend.revive(active.group_id)
    await world.fleet()
    await world.hear(active.group_id, server_restarts=1)
    assert await said(world, active.lease.id) == (True, "Serving")
    history = await world.leases.events(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id)
    assert [each.type for each in history] == ["Created", "Placed", "Active", "Healing", "Healed"]


async def test_workers_are_not_lost_while_their_sidecars_come_back_to_a_new_server(world: middle.World) -> None:
    await world.active()
    await world.beat()
    again = middle.World(world.store, world.clock)
    again.backend.world = world.backend.world
    again.live.restore(await world.stored(lambda reader: reader.reports()), world.clock.now())
    await again.fleet()
    (shown,) = await again.workers.list(middle.CALLER, ids.DEFAULT_NAMESPACE, "")
    assert shown.state == "READY"
    world.advance(seconds=middle.LOST_AFTER / dt.timedelta(seconds=1))
    (shown,) = await again.workers.list(middle.CALLER, ids.DEFAULT_NAMESPACE, "")
    assert shown.state == "LOST"


async def test_a_lease_that_serves_tells_what_keeps_it_from_growing(led: middle.World) -> None:
    active, group_id, _ = await with_two(led)
    led.backend.trouble(group_id, backend_module.Trouble("Unschedulable", "0/3 nodes"))
    await led.settle()
    found = (await led.get(active.lease.id)).lease
    warning = found.condition("Warning")
    assert warning is not None
    assert (warning.status, warning.reason) == (True, "Unschedulable")
    assert await said(led, active.lease.id) == (True, "Serving")
    led.backend.trouble(group_id, None)
    await led.settle()
    warning = (await led.get(active.lease.id)).lease.condition("Warning")
    assert warning is not None
    assert not warning.status


async def test_a_worker_that_was_not_there_yet_is_not_lost(led: middle.World) -> None:
    placed = await led.placed()
    assert placed.group_id is not None
    led.backend.lose_replica(placed.group_id, led.replicas(placed.group_id)[0])
    await led.settle()
    assert (await led.get(placed.lease.id)).lease.condition("ModelsReady") is None
