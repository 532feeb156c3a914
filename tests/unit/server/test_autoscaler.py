"""Leases that grow by TMS' own scaler: from what workers say to copies that serve, and back, without a gap."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from tests.support import middle
from tms_server.model import errors, group, ids, lease, resources
from tms_server.reconcilers import autoscaler
from tms_server.services import views
from tms_server.world import usage

NOW = dt.timedelta(0)
METRIC = lease.ScalingMetric(kind=lease.MetricKind.IN_FLIGHT, target_milli=4000)
GROWS = lease.Autoscaling(
    min_replicas=1,
    max_replicas=3,
    metrics=(METRIC,),
    behavior=lease.ScalingBehavior(scale_down_window=NOW),
)
ALONE = lease.Sharing(exclusive=True)


@pytest.fixture
def scaler(led: middle.World) -> autoscaler.Autoscaler:
    return made(led)


def made(led: middle.World, *, sizes_replicas: bool = False) -> autoscaler.Autoscaler:
    return autoscaler.Autoscaler(
        store=led.store,
        backend=led.backend,
        clock=led.clock,
        live=led.live,
        usage=usage.Usage(),
        sizes_replicas=lambda: sizes_replicas,
    )


async def say(led: middle.World, in_flight: int, *, known: bool = True) -> None:
    """Every worker speaks, and together they have so many requests."""
    groups = list(led.backend.world.groups)
    for place, group_id in enumerate(groups):
        share = in_flight // len(groups) + (place < in_flight % len(groups))
        report = await led.report(group_id)
        models = tuple(dataclasses.replace(each, in_flight=share) for each in report.models)
        for replica in led.replicas(group_id):
            await led.hear(group_id, replica=replica, models=models, in_flight_known=known)


async def live_on(led: middle.World, scaler: autoscaler.Autoscaler, in_flight: int, *, seconds: int = 20) -> None:
    """Time goes by under that load, and everybody does their part."""
    for _ in range(seconds):
        led.advance(seconds=1)
        await say(led, in_flight)
        await scaler()
        await led.place()
        await led.settle()


async def copies(led: middle.World, lease_id: str) -> list[group.Assignment]:
    held = await led.stored(lambda reader: reader.assignments(ids.LeaseId(lease_id)))
    return [each for each in held if not each.draining]


def led_to(led: middle.World, view: views.LeaseView) -> set[ids.GroupId]:
    (route,) = [each for each in led.backend.world.routes if each.lease_id == view.lease.id]
    return {worker.group_id for worker in route.workers}


async def test_a_lease_in_a_pool_grows_by_copies_and_shrinks_to_the_oldest(
    led: middle.World, scaler: autoscaler.Autoscaler
) -> None:
    active = await led.active(autoscaling=GROWS, sharing=ALONE)
    await live_on(led, scaler, 12)
    assert len(await copies(led, active.lease.id)) == 3
    assert len(led_to(led, active)) == 3
    shown = await led.get(active.lease.id)
    assert (shown.wanted_replicas, shown.ready_replicas) == (3, 3)
    assert shown.lease.state is lease.LeaseState.ACTIVE
    await live_on(led, scaler, 0)
    (last,) = await copies(led, active.lease.id)
    assert last.group_id == active.group_id
    assert led_to(led, active) == {active.group_id}
    assert set(led.backend.world.groups) == {active.group_id}
    assert (await led.get(active.lease.id)).lease.state is lease.LeaseState.ACTIVE
    events = [each.type for each in await led.stored(lambda reader: reader.events(active.lease.id))]
    assert events.count("ScaledUp") == 1
    assert events.count("ScaledDown") >= 1


async def test_a_copy_without_a_place_is_said_and_comes_when_there_is_room(
    led: middle.World, scaler: autoscaler.Autoscaler
) -> None:
    others = [await led.active(name, sharing=ALONE) for name in ("two", "three", "four")]
    active = await led.active(autoscaling=dataclasses.replace(GROWS, min_replicas=2, max_replicas=2), sharing=ALONE)
    await scaler()
    await led.place()
    short = await led.get(active.lease.id)
    sized = short.lease.condition("Sized")
    assert sized is not None
    assert (sized.status, sized.reason) == (False, "NoCapacity")
    assert short.lease.state is lease.LeaseState.ACTIVE
    revision = await led.stored(lambda reader: reader.revision())
    await led.place()
    assert await led.stored(lambda reader: reader.revision()) == revision
    why = await led.leases.explain(middle.CALLER, ids.DEFAULT_NAMESPACE, active.lease.id)
    assert "1 of 2 copies" in why.why.summary
    await led.leases.release(middle.CALLER, ids.DEFAULT_NAMESPACE, others[0].lease.id, "")
    await live_on(led, scaler, 0, seconds=5)
    assert len(await copies(led, active.lease.id)) == 2
    sized = (await led.get(active.lease.id)).lease.condition("Sized")
    assert sized is not None
    assert sized.status


async def test_nothing_shrinks_for_want_of_news(led: middle.World, scaler: autoscaler.Autoscaler) -> None:
    active = await led.active(autoscaling=GROWS, sharing=ALONE)
    await live_on(led, scaler, 12)
    for _ in range(60):
        led.advance(seconds=1)
        await say(led, 0, known=False)
        await scaler()
    assert (await led.get(active.lease.id)).lease.wanted_copies == 3
    led.advance(minutes=10)
    await scaler()
    assert (await led.get(active.lease.id)).lease.wanted_copies == 3


async def test_a_change_in_between_makes_the_decision_void(led: middle.World, scaler: autoscaler.Autoscaler) -> None:
    active = await led.active(autoscaling=GROWS, sharing=ALONE)
    await say(led, 12)
    inner = led.store

    class Late:
        """The store, where somebody saves the lease between the scaler's reading and writing."""

        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

        async def read(self, work: object) -> object:
            found = await inner.read(work)  # type: ignore[arg-type,var-annotated]  # passed on
            await inner.write(lambda unit: unit.save_lease(unit.get_lease(active.lease.id)))  # type: ignore[arg-type]  # it is there
            return found

    scaler.store = Late()  # type: ignore[assignment]  # all but one call go to the store
    with pytest.raises(errors.Conflict):
        await scaler()
    assert (await led.get(active.lease.id)).lease.wanted_copies == 1
    scaler.store = inner
    await scaler()
    assert (await led.get(active.lease.id)).lease.wanted_copies == 3


async def test_the_last_copy_that_serves_is_not_drained(led: middle.World, scaler: autoscaler.Autoscaler) -> None:
    active = await led.active(autoscaling=GROWS, sharing=ALONE)
    await live_on(led, scaler, 12)
    assert active.group_id is not None
    for _ in range(20):
        led.advance(seconds=1)
        await say(led, 0)
        for replica in led.replicas(active.group_id):
            await led.hear(active.group_id, replica=replica, server_ready=False, in_flight_known=True)
        await scaler()
    assert (await led.get(active.lease.id)).lease.wanted_copies == 2


async def test_replicas_of_a_dedicated_lease_are_sized_where_nobody_else_does(led: middle.World) -> None:
    dedicated = lease.Dedicated(resources.WorkerSpec(command="tms-worker"))
    active = await led.active(autoscaling=GROWS, placement=dedicated)
    left_alone, own = made(led), made(led, sizes_replicas=True)
    for scaler, size in ((left_alone, 1), (own, 3)):
        for _ in range(3):
            led.advance(seconds=5)
            await say(led, 12)
            await scaler()
        (only,) = await led.stored(lambda reader: reader.groups())
        assert (only.id, only.replicas) == (active.group_id, size)
        assert (await led.get(active.lease.id)).lease.wanted_copies == 1


async def test_samples_are_taken_between_decisions_and_rarely_where_nobody_grows(
    led: middle.World, scaler: autoscaler.Autoscaler
) -> None:
    await led.active("two")
    assert await scaler() == led.clock.now() + autoscaler.DECIDE
    await led.active(autoscaling=GROWS)
    led.advance(seconds=5)
    assert await scaler() == led.clock.now() + autoscaler.SAMPLE


async def test_sized_replicas_are_launched_without_the_backends_own_autoscaler(led: middle.World) -> None:
    led.fleet._parts = dataclasses.replace(led.fleet._parts, grows=lambda: False)
    dedicated = lease.Dedicated(resources.WorkerSpec(command="tms-worker"), replicas=2)
    active = await led.active(autoscaling=GROWS, placement=dedicated)
    assert active.group_id is not None
    assert (led.backend.spec(active.group_id).replicas, led.backend.spec(active.group_id).scaling) == (2, None)
    scaler = made(led, sizes_replicas=True)
    await say(led, 12)
    await scaler()
    await led.settle()
    assert led.backend.spec(active.group_id).replicas == 3
