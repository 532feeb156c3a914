"""On a backend with replicas: what is launched and launched anew, pools that change, growth that is asked for."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from protos.tms.v1 import lease_pb2
from tests.support import middle
from tms_server.api import convert, convert_scaling
from tms_server.fleet import rolling
from tms_server.model import errors, ids, lease, pool, resources
from tms_server.ports import backend as backend_module
from tms_server.services import create

WORKER = resources.WorkerSpec(command="tms-worker")
GROWS = lease.Autoscaling(
    min_replicas=1, max_replicas=3, metrics=(lease.ScalingMetric(kind=lease.MetricKind.IN_FLIGHT, target_milli=4000),)
)


def small(bytes_: int) -> resources.WorkerSpec:
    return dataclasses.replace(WORKER, resources=resources.Resources(memory_bytes=bytes_))


async def change(world: middle.World, worker: resources.WorkerSpec, **more: int) -> None:
    spec = pool.PoolSpec(worker=worker, **more)  # type: ignore[arg-type]  # the tests name the fields
    await world.pools.update(middle.CALLER, ids.DEFAULT_NAMESPACE, ids.DEFAULT_POOL, spec)


async def groups(world: middle.World) -> dict[ids.GroupId, resources.WorkerSpec]:
    return {each.id: each.spec for each in await world.stored(lambda reader: reader.groups())}


async def test_what_was_edited_by_hand_is_launched_again(led: middle.World) -> None:
    active = await led.active()
    assert active.group_id is not None
    there = led.backend.world.groups[active.group_id]
    there.spec = dataclasses.replace(there.spec, replicas=7)
    await led.settle()
    assert led.backend.spec(active.group_id).replicas == 1
    assert led.backend.launches[active.group_id] == 2


async def test_growth_of_a_dedicated_lease_is_the_backends_with_its_measured_load(led: middle.World) -> None:
    placed = await led.placed(placement=lease.Dedicated(WORKER), autoscaling=GROWS)
    assert placed.group_id is not None
    scaling = led.backend.spec(placed.group_id).scaling
    assert scaling == backend_module.Scaling(lease_id=placed.lease.id, autoscaling=GROWS)
    led.advance(seconds=7)
    (replica,) = led.replicas(placed.group_id)
    await led.hear(placed.group_id, replica=replica)
    await led.settle()
    scaling = led.backend.spec(placed.group_id).scaling
    assert scaling is not None
    assert scaling.load_s == 7.0


async def test_a_changed_pool_rolls_one_worker_after_the_other(led: middle.World) -> None:
    one = await led.active("one", sharing=lease.Sharing(exclusive=True))
    led.advance(seconds=1)
    two = await led.active("two", sharing=lease.Sharing(exclusive=True))
    generations = {each.id: each.generation for each in await led.stored(lambda reader: reader.groups())}
    new = small(2**20)
    await change(led, new)
    await led.settle()
    assert one.group_id is not None
    assert two.group_id is not None
    assert await groups(led) == {one.group_id: new, two.group_id: WORKER}
    assert led.backend.spec(one.group_id).worker == new
    # The old worker goes only after the new one is there: then it is the turn of the next.
    (old,) = led.replicas(one.group_id)
    led.backend.add_replica(one.group_id, ids.ReplicaId("new"))
    await led.settle()
    assert (await groups(led))[two.group_id] == WORKER
    await led.hear(one.group_id, replica=ids.ReplicaId("new"))
    led.backend.lose_replica(one.group_id, old)
    await led.settle()
    assert await groups(led) == {one.group_id: new, two.group_id: new}
    assert generations == {each.id: each.generation for each in await led.stored(lambda reader: reader.groups())}
    serving = (await led.get(one.lease.id)).lease.condition("Serving")
    assert serving is not None
    assert serving.status


async def test_a_worker_that_never_gets_ready_holds_the_others_up_for_a_bounded_time(led: middle.World) -> None:
    await led.active("one", sharing=lease.Sharing(exclusive=True))
    led.advance(seconds=1)
    two = await led.active("two", sharing=lease.Sharing(exclusive=True))
    assert two.group_id is not None
    await change(led, small(2**20))
    await led.settle()
    led.advance(seconds=rolling.BOUND / dt.timedelta(seconds=1) - 1)
    await led.settle()
    assert (await groups(led))[two.group_id] == WORKER
    led.advance(seconds=1)
    await led.settle()
    assert (await groups(led))[two.group_id] == small(2**20)


async def test_a_shape_that_cannot_hold_what_is_booked_is_refused_whole(led: middle.World) -> None:
    active = await led.active()
    held = await led.stored(lambda reader: reader.assignments())
    with pytest.raises(errors.FailedPrecondition, match=r"memory_bytes: worker .* has .* booked"):
        await change(led, small(held[0].booked_bytes - 1))
    assert set((await groups(led)).values()) == {WORKER}
    assert active.group_id is not None
    await change(led, small(held[0].booked_bytes))
    (stored,) = await led.stored(lambda reader: reader.groups())
    assert stored.capacity_bytes == held[0].booked_bytes


async def test_room_grows_only_once_every_worker_has_it(led: middle.World) -> None:
    active = await led.active()
    assert active.group_id is not None
    await change(led, small(2**31))
    await led.settle()
    assert [each.capacity_bytes for each in await led.stored(lambda reader: reader.groups())] == [2**30]
    (old,) = led.replicas(active.group_id)
    led.backend.add_replica(active.group_id, ids.ReplicaId("new"))
    led.backend.lose_replica(active.group_id, old)
    await led.settle()
    assert [each.capacity_bytes for each in await led.stored(lambda reader: reader.groups())] == [2**31]


async def test_a_backend_that_does_not_roll_changes_sizes_and_no_shapes(world: middle.World) -> None:
    await world.active()
    with pytest.raises(errors.Unimplemented):
        await change(world, small(2**20))
    await change(world, WORKER, max_workers=9)
    shown = await world.pools.get(middle.CALLER, ids.DEFAULT_NAMESPACE, ids.DEFAULT_POOL)
    assert shown.pool.spec.max_workers == 9


async def test_growth_is_refused_where_the_backend_has_no_replicas(world: middle.World) -> None:
    with pytest.raises(errors.Unimplemented, match=r"dedicated\.replicas"):
        await world.create(placement=lease.Dedicated(WORKER, 2))
    with pytest.raises(errors.Unimplemented, match="autoscaling"):
        await world.create(autoscaling=GROWS)


async def test_a_name_that_can_have_no_address_is_refused_by_its_field(led: middle.World) -> None:
    long = ids.LeaseName("n" * 63)
    active = await led.active()
    with pytest.raises(errors.InvalidField, match="name: "):
        await led.names.set(middle.CALLER, ids.DEFAULT_NAMESPACE, long, active.lease.id)
    asked = create.CreateLease(namespace=ids.DEFAULT_NAMESPACE, spec=active.lease.spec, name=long)
    with pytest.raises(errors.InvalidField, match="name: "):
        await led.creator.create(middle.CALLER, asked)


async def test_what_stands_against_a_worker_warns_from_the_start_and_passes(
    led: middle.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    against = backend_module.Trouble("NoMatchingNode", "no node offers nvidia.com/gpu")
    monkeypatch.setattr(led.backend, "warn", lambda _: against)
    made = await led.create()
    told = made.lease.condition("Warning")
    assert told is not None
    assert (told.status, told.reason, told.message) == (True, against.reason, against.message)
    monkeypatch.setattr(led.backend, "warn", lambda _: None)
    await led.digest()
    told = (await led.get(made.lease.id)).lease.condition("Warning")
    assert told is not None
    assert not told.status


K = lease_pb2.ScalingMetric


def asked(*metrics: lease_pb2.ScalingMetric, **fields: int) -> lease_pb2.CreateLeaseRequest:
    given = {"max_replicas": 2, **fields}
    behavior = lease_pb2.ScalingBehavior(max_step_up=2)
    return lease_pb2.CreateLeaseRequest(
        dedicated=lease_pb2.DedicatedPlacement(),
        autoscaling=lease_pb2.Autoscaling(metrics=metrics, behavior=behavior, **given),
    )


def test_growth_goes_over_the_wire_and_back_with_its_defaults() -> None:
    latency = K(kind=lease_pb2.SCALING_METRIC_KIND_LATENCY, target_milli=50_000)
    for message, metric in ((asked(), GROWS.metrics[0]), (asked(latency), None)):
        spec = convert.create_lease(message, lease.Times()).spec
        assert spec.autoscaling is not None
        if metric is None:
            assert spec.autoscaling.metrics[0].quantile_permille == 950
        else:
            assert spec.autoscaling.metrics == (metric,)
        assert (spec.autoscaling.min_replicas, spec.autoscaling.behavior.max_step_up) == (1, 2)
        assert spec.autoscaling.behavior.scale_up_window is None
        again = lease_pb2.CreateLeaseRequest(autoscaling=convert_scaling.autoscaling_message(spec.autoscaling))
        assert convert.create_lease(again, lease.Times()).spec.autoscaling == spec.autoscaling


def test_replicas_left_out_begin_with_the_least() -> None:
    placement = convert.create_lease(asked(min_replicas=2, max_replicas=5), lease.Times()).spec.placement
    assert isinstance(placement, lease.Dedicated)
    assert placement.replicas == 2


def test_a_metric_that_does_not_exist_is_refused_by_its_field() -> None:
    with pytest.raises(errors.InvalidField, match=r"autoscaling\.metrics\[0\]\.kind"):
        convert.create_lease(asked(K(target_milli=1)), lease.Times())
