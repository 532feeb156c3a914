"""Reconcilers: build a fleet, run one pass, compare the world."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from tests.support import middle
from tms_server.model import errors, group, ids, lease
from tms_server.ports import store as store_module
from tms_server.reconcilers import heartbeat

S = lease.LeaseState


async def test_the_placer_books_and_the_fleet_launches_with_the_groups_own_token(world: middle.World) -> None:
    made = await world.create()
    await world.place()
    placed = await world.get(made.lease.id)
    assert (placed.lease.state, placed.group_id is None) == (S.PLACED, False)
    assert not world.backend.world.groups
    await world.run_fleet()
    stored = (await world.stored(lambda reader: reader.groups()))[0]
    launched = world.backend.spec(stored.id)
    assert launched.token == stored.token
    endpoints = await world.stored(lambda reader: reader.endpoints())
    assert endpoints[f"group/{stored.id}"] == launched.endpoint
    assert f"lease/{made.lease.id}" in endpoints
    assert len(set(endpoints.values())) == len(endpoints)


async def test_passes_that_find_nothing_to_do_write_nothing(world: middle.World) -> None:
    active = await world.active()
    revision = await world.stored(lambda reader: reader.revision())
    await world.place()
    await world.run_fleet()
    await world.hear(active.group_id or ids.GroupId(""))
    await world.sweep()
    await world.expire()
    assert await world.stored(lambda reader: reader.revision()) == revision


async def test_a_plan_made_for_a_lease_that_changed_meanwhile_is_dropped_whole(world: middle.World) -> None:
    made = await world.create()
    inner = world.store

    class Late:
        """The store, where somebody releases the lease between the placer's reading and writing."""

        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

        async def read(self, work: object) -> object:
            found = await inner.read(work)  # type: ignore[arg-type,var-annotated]  # passed on
            await world.leases.release(middle.CALLER, ids.DEFAULT_NAMESPACE, made.lease.id, "")
            return found

    late = dataclasses.replace(world.place, store=Late())  # type: ignore[arg-type]  # all but one call go to the store
    with pytest.raises(errors.Conflict):
        await late()
    assert await world.stored(lambda reader: (reader.groups(), reader.assignments())) == ((), ())
    assert (await world.get(made.lease.id)).lease.state is S.RELEASED


async def test_a_launch_that_fails_is_shown_and_tried_again(world: middle.World) -> None:
    world.backend.fail_launches(errors.ResourceExhausted("no device is free"))
    made = await world.placed()
    why = await world.leases.explain(middle.CALLER, ids.DEFAULT_NAMESPACE, made.lease.id)
    assert "no device is free" in why.trouble
    world.backend.fail_launches(None)
    await world.run_fleet()
    assert world.backend.world.groups
    why = await world.leases.explain(middle.CALLER, ids.DEFAULT_NAMESPACE, made.lease.id)
    assert not why.trouble


async def test_one_silent_moment_of_the_backend_retires_nobody(world: middle.World) -> None:
    await world.active()
    world.backend.silence()
    with pytest.raises(errors.Unavailable):
        await world.fleet()
    world.backend.silence(silent=False)
    await world.run_fleet()
    assert len(world.backend.world.groups) == 1
    assert sum(world.backend.launches.values()) == 1


async def test_a_group_that_vanished_is_launched_again_under_its_id(world: middle.World) -> None:
    active = await world.active()
    assert active.group_id is not None
    world.backend.lose(active.group_id)
    await world.run_fleet()
    assert set(world.backend.world.groups) == {active.group_id}
    assert world.backend.launches[active.group_id] == 2


async def test_an_older_generation_makes_no_lease_active(world: middle.World) -> None:
    placed = await world.placed()
    assert placed.group_id is not None
    await world.hear(placed.group_id, generation=0)
    assert (await world.get(placed.lease.id)).lease.state is S.PLACED
    await world.hear(placed.group_id)
    assert (await world.get(placed.lease.id)).lease.state is S.ACTIVE


async def test_a_lease_is_not_active_before_its_own_endpoint_answers(world: middle.World) -> None:
    placed = await world.placed()
    assert placed.group_id is not None
    await world.hear(placed.group_id, endpoints=())
    assert (await world.get(placed.lease.id)).lease.state is S.LOADING


async def test_the_end_waits_for_the_worker_and_a_dead_server_confirms_nothing(world: middle.World) -> None:
    active = await world.active()
    assert active.group_id is not None
    before = await world.report(active.group_id)
    await world.leases.release(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id, "")
    world.live.hear(before)
    await world.digest()
    assert (await world.get(active.lease.id)).lease.state is S.RELEASING
    await world.hear(active.group_id, server_ready=False)
    assert (await world.get(active.lease.id)).lease.state is S.RELEASING
    await world.hear(active.group_id)
    assert (await world.get(active.lease.id)).lease.state is S.RELEASED
    await world.run_fleet()
    assert not world.backend.world.groups
    assert await world.stored(lambda reader: (reader.groups(), dict(reader.endpoints()))) == ((), {})


async def test_a_worker_that_never_confirms_is_retired_with_what_it_holds(world: middle.World) -> None:
    active = await world.active()
    await world.leases.release(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id, "")
    await world.run_fleet()
    await world.sweep()
    assert (await world.get(active.lease.id)).lease.state is S.RELEASING
    world.advance(minutes=3)
    await world.run_fleet()
    await world.sweep()
    assert (await world.get(active.lease.id)).lease.state is S.RELEASED
    assert not world.backend.world.groups


async def test_a_worker_that_is_gone_confirms_by_its_absence(world: middle.World) -> None:
    active = await world.active()
    assert active.group_id is not None
    await world.leases.release(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id, "")
    world.backend.lose(active.group_id)
    await world.sweep()
    assert (await world.get(active.lease.id)).lease.state is S.RELEASED


async def test_at_most_a_hundred_leases_end_in_one_pass(world: middle.World) -> None:
    for number in range(103):
        await world.create(f"m{number}", times=lease.Times(pending_timeout=dt.timedelta(seconds=60)))
    world.advance(seconds=60)
    due = await world.expire()
    assert due == world.clock.now()
    assert len(await world.stored(lambda reader: reader.unended_leases())) == 3
    await world.expire()
    assert await world.stored(lambda reader: reader.unended_leases()) == ()


async def test_the_expirer_sleeps_until_the_earliest_deadline(world: middle.World) -> None:
    active = await world.active()
    assert await world.expire() == active.deadline
    assert active.deadline == world.clock.now() + dt.timedelta(minutes=10)


async def test_idleness_is_proven_only_by_a_digested_report_after_the_deadline(world: middle.World) -> None:
    active = await world.active()
    assert active.group_id is not None
    world.advance(minutes=10)
    await world.expire()
    assert world.expire.owed
    used = await world.report(active.group_id)
    used = dataclasses.replace(used, models=(dataclasses.replace(used.models[0], inference_count=1),))
    # Heard, but its use is not counted yet.
    world.live.hear(used)
    await world.expire()
    assert (await world.get(active.lease.id)).lease.state is S.ACTIVE
    await world.digest()
    await world.expire()
    kept = await world.get(active.lease.id)
    assert (kept.lease.state, kept.lease.last_activity_at) == (S.ACTIVE, world.clock.now())


async def test_a_sample_from_before_the_deadline_proves_nothing_however_late_it_comes(world: middle.World) -> None:
    active = await world.active()
    assert active.group_id is not None
    world.advance(minutes=10)
    await world.hear(active.group_id, sampled_at=world.clock.now() - dt.timedelta(milliseconds=1))
    await world.expire()
    assert (await world.get(active.lease.id)).lease.state is S.ACTIVE
    await world.hear(active.group_id, sampled_at=world.clock.now())
    await world.expire()
    assert (await world.get(active.lease.id)).lease.state is S.RELEASING


async def test_a_worker_that_is_gone_owes_no_proof_for_ever(world: middle.World) -> None:
    active = await world.active()
    assert active.group_id is not None
    world.advance(minutes=10)
    world.live.lose(ids.WorkerId(active.group_id), world.clock.now())
    await world.expire()
    assert (await world.get(active.lease.id)).lease.state is S.ACTIVE
    world.advance(seconds=60)
    await world.expire()
    assert (await world.get(active.lease.id)).lease.state is S.RELEASING


async def test_nothing_expires_while_the_store_was_silent_and_the_silence_is_credited(world: middle.World) -> None:
    active = await world.active()
    assert active.group_id is not None
    await world.beat()
    inner = world.store

    class Silent:
        async def write(self, work: object) -> object:
            raise errors.Unavailable("the disk is gone")

    world.beat._store = Silent()  # type: ignore[assignment]  # one call is all it makes
    world.advance(minutes=9)
    with pytest.raises(errors.Unavailable):
        await world.beat()
    world.advance(minutes=2)
    await world.hear(active.group_id)
    await world.expire()
    assert (await world.get(active.lease.id)).lease.state is S.ACTIVE
    world.beat._store = inner
    await world.beat()
    assert (await world.get(active.lease.id)).lease.credit == dt.timedelta(minutes=11)


async def test_use_of_many_leases_is_stored_in_one_write_with_few_lines_of_history(world: middle.World) -> None:
    active = await world.active()
    assert active.group_id is not None
    types = []
    for count in range(1, 11):
        world.advance(seconds=30)
        report = await world.report(active.group_id)
        used = dataclasses.replace(report.models[0], inference_count=count, last_inference=world.clock.now())
        await world.hear(active.group_id, models=(used,))
        await world.beat()
        types = [each.type for each in await world.stored(lambda reader: reader.events(active.lease.id))]
    stored = await world.stored(lambda reader: reader.get_lease(active.lease.id))
    assert stored is not None
    assert stored.last_activity_at == world.clock.now()
    assert types.count("Renewed") == 1


async def test_an_outage_moves_every_deadline(world: middle.World) -> None:
    active = await world.active()
    await world.beat()
    world.advance(hours=1)
    outage = await heartbeat.credit_outage(world.store, world.clock.now())
    assert outage == dt.timedelta(hours=1)
    assert active.deadline is not None
    assert (await world.get(active.lease.id)).deadline == active.deadline + outage


async def test_measurements_and_checksums_are_learnt_once(world: middle.World) -> None:
    placed = await world.placed()
    assert placed.group_id is not None
    report = await world.report(placed.group_id)
    file = dataclasses.replace(placed.lease.sources[0].files[0], sha256="a" * 64)
    learnt = dataclasses.replace(
        report.models[0], bytes_before_load=1000, bytes_peak_load=9000, bytes_after_load=5000, files=(file,)
    )
    await world.hear(placed.group_id, models=(learnt,))
    await world.hear(placed.group_id, models=(learnt,))
    found = await world.stored(lambda reader: reader.measurements())
    assert [(each.bytes, each.worker) for each in found] == [(4000, "tms-worker/cpu")]
    shown = await world.get(placed.lease.id)
    assert shown.lease.sources[0].files[0].sha256 == "a" * 64
    # Another word later does not change what was learnt first.
    other = dataclasses.replace(learnt, files=(dataclasses.replace(file, sha256="b" * 64),))
    await world.hear(placed.group_id, models=(other,))
    assert (await world.get(placed.lease.id)).lease.sources[0].files[0].sha256 == "a" * 64


async def test_the_first_load_of_an_empty_worker_is_measured_and_an_unknown_one_is_not(world: middle.World) -> None:
    placed = await world.placed()
    assert placed.group_id is not None
    (model,) = (await world.report(placed.group_id)).models
    await world.hear(placed.group_id, models=(dataclasses.replace(model, bytes_before_load=7000),))
    assert await world.stored(lambda reader: reader.measurements()) == ()
    await world.hear(placed.group_id, models=(dataclasses.replace(model, bytes_after_load=5000),))
    assert [each.bytes for each in await world.stored(lambda reader: reader.measurements())] == [5000]


async def test_a_lease_whose_models_turn_out_to_be_missing_fails(world: middle.World) -> None:
    world.shelf.silent = True
    made = await world.create()
    await world.look_up()
    world.shelf.silent = False
    world.shelf.refusals["model://shelf/one"] = errors.NotFound("no such model")
    assert (await world.get(made.lease.id)).lease.state is S.PENDING
    await world.look_up()
    ended = (await world.get(made.lease.id)).lease
    assert (ended.state, ended.end is not None and ended.end.reason) == (S.FAILED, "ModelNotFound")


async def test_the_last_report_is_stored_for_the_next_server(world: middle.World) -> None:
    active = await world.active()
    assert active.group_id is not None
    await world.beat()
    stored = await world.stored(lambda reader: reader.reports())
    assert [(each.group_id, each.models[0].state) for each in stored] == [(active.group_id, group.ModelState.READY)]


async def test_events_that_nobody_named_stay_out_of_the_history(world: middle.World) -> None:
    active = await world.active()

    def touch(unit: store_module.UnitOfWork) -> None:
        held = unit.get_lease(active.lease.id)
        assert held is not None
        unit.save_lease(dataclasses.replace(held, credit=dt.timedelta(seconds=1)))

    await world.store.write(touch)
    history = await world.leases.events(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id)
    assert [each.type for each in history] == ["Created", "Placed", "Active"]
