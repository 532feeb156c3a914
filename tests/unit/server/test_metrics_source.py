"""What the metrics API answers: values of leases by label, from what their workers said."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support import middle
from tms_server.metrics_api import selectors, source
from tms_server.model import ids, lease
from tms_server.world import live, usage

KIND = lease.MetricKind
HERE = "models"


@pytest.fixture
def values(led: middle.World) -> source.LeaseSource:
    return source.LeaseSource(
        namespace=HERE, store=led.store, backend=led.backend, live=led.live, usage=usage.Usage(), clock=led.clock
    )


async def say(led: middle.World, group_id: ids.GroupId | None, **fields: int) -> None:
    """Every worker of the group counts so much for each model, and has it in flight."""
    assert group_id is not None
    report = await led.report(group_id)
    models = tuple(dataclasses.replace(each, **fields) for each in report.models)  # type: ignore[arg-type]  # the tests name the fields
    for replica in led.replicas(group_id):
        await led.hear(group_id, replica=replica, models=models, in_flight_known=True)


async def ask(
    values: source.LeaseSource, kind: lease.MetricKind, selector: str, namespace: str = HERE
) -> dict[str, int]:
    found = await values.series(kind, namespace, selectors.parse(selector))
    return {each.labels[source.LEASE]: each.value_milli for each in found}


async def test_each_lease_has_its_own_value_and_shared_models_count_for_all(
    led: middle.World, values: source.LeaseSource
) -> None:
    one = await led.active("one")
    both = await led.active("one", "two")
    assert one.group_id == both.group_id
    await say(led, one.group_id, in_flight=3)
    assert await ask(values, KIND.IN_FLIGHT, f"lease={one.lease.id}") == {one.lease.id: 3000}
    assert await ask(values, KIND.IN_FLIGHT, f"lease in ({both.lease.id})") == {both.lease.id: 6000}
    assert await ask(values, KIND.IN_FLIGHT, "") == {one.lease.id: 3000, both.lease.id: 6000}
    assert await ask(values, KIND.IN_FLIGHT, "namespace=default,lease!=x") == {one.lease.id: 3000, both.lease.id: 6000}
    assert await ask(values, KIND.IN_FLIGHT, "namespace=other") == {}


async def test_other_namespaces_unknown_leases_and_unknown_values_have_none(
    led: middle.World, values: source.LeaseSource
) -> None:
    one = await led.active()
    assert await ask(values, KIND.IN_FLIGHT, f"lease={one.lease.id}") == {}
    await say(led, one.group_id, in_flight=3)
    assert await ask(values, KIND.IN_FLIGHT, f"lease={one.lease.id}", namespace="other") == {}
    assert await ask(values, KIND.IN_FLIGHT, "lease=l-unknown") == {}
    assert await ask(values, KIND.LATENCY, f"lease={one.lease.id}") == {}
    await led.leases.release(middle.CALLER, ids.DEFAULT_NAMESPACE, one.lease.id, "")
    assert await ask(values, KIND.IN_FLIGHT, f"lease={one.lease.id}") == {}


async def test_rates_come_from_what_was_said_between_two_queries(led: middle.World, values: source.LeaseSource) -> None:
    one = await led.active()
    await say(led, one.group_id, request_count=100)
    await ask(values, KIND.REQUEST_RATE, "")
    led.advance(seconds=10)
    await say(led, one.group_id, request_count=150)
    assert await ask(values, KIND.REQUEST_RATE, f"lease={one.lease.id}") == {one.lease.id: 5000}


async def test_workers_that_serve_unheard_count_as_the_others(led: middle.World, values: source.LeaseSource) -> None:
    one = await led.active()
    assert one.group_id is not None
    led.backend.add_replica(one.group_id, ids.ReplicaId("second"))
    await led.settle()
    await say(led, one.group_id, in_flight=4)
    await led.settle()
    assert await ask(values, KIND.IN_FLIGHT, "") == {one.lease.id: 8000}
    led.advance(seconds=30)
    report = await led.report(one.group_id)
    models = tuple(dataclasses.replace(each, in_flight=5) for each in report.models)
    await led.hear(one.group_id, replica=ids.ReplicaId("second"), models=models, in_flight_known=True)
    assert await ask(values, KIND.IN_FLIGHT, "") == {one.lease.id: 10_000}


async def test_workers_that_speak_to_another_server_are_known_from_the_store(
    led: middle.World, values: source.LeaseSource
) -> None:
    one = await led.active()
    await say(led, one.group_id, in_flight=6)
    await led.beat()
    follower = dataclasses.replace(values, live=live.Live(), usage=usage.Usage())
    assert await ask(follower, KIND.IN_FLIGHT, f"lease={one.lease.id}") == {one.lease.id: 6000}
    led.advance(seconds=1)
    await say(led, one.group_id, in_flight=8)
    await led.beat()
    # Not asked again within moments, and then from what is stored meanwhile.
    assert await ask(follower, KIND.IN_FLIGHT, "") == {one.lease.id: 6000}
    led.advance(seconds=1)
    assert (await ask(follower, KIND.IN_FLIGHT, ""))[one.lease.id] > 6000
