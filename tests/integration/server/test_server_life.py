"""A lease's life over the real API: a real database and socket, simulated workers, a clock moved by hand."""

from __future__ import annotations

import pathlib

from google.protobuf import duration_pb2

from protos.tms.v1 import common_pb2, lease_pb2, pool_pb2
from tests.support import server as servers
from tests.support import sidecars

MINUTE_S = 60.0


async def test_a_lease_becomes_active_with_an_endpoint_and_expires_when_it_is_idle(server: servers.Running) -> None:
    made = await server.create()
    assert made.state == lease_pb2.LEASE_STATE_PENDING

    active = await server.until_state(made.id, lease_pb2.LEASE_STATE_ACTIVE)
    assert active.endpoint.host
    assert active.expires.remaining.seconds == 10 * MINUTE_S

    server.advance(minutes=11)
    ended = await server.until_state(made.id, lease_pb2.LEASE_STATE_EXPIRED)
    assert ended.end.reason == "Idle"
    await server.idle()
    # A worker that is quick is never seen loading.
    history = [each for each in await server.events(made.id) if each != "Loading"]
    assert history == ["Created", "Placed", "Active", "Releasing", "Expired"]


async def test_use_renews_and_an_idle_lease_ends_one_window_after_its_last_use(server: servers.Running) -> None:
    active = await server.active(times=_times(hold_s=60, window_s=60))
    sidecar = server.sidecars.of(active.worker_group)
    server.advance(seconds=50)
    sidecar.use("one")
    used = await server.until_read(active.id, lambda lease: lease.HasField("last_activity_at"))
    assert used.expires.at.seconds == used.last_activity_at.seconds + 60
    # Stored with the next mark of life, with one line of history.
    server.advance(seconds=2)
    renewed = await server.until(active.id, lambda lease: lease.revision > active.revision)
    assert renewed.state == lease_pb2.LEASE_STATE_ACTIVE
    assert "Renewed" in await server.events(active.id)
    server.advance(seconds=59)
    ended = await server.until_state(active.id, lease_pb2.LEASE_STATE_EXPIRED)
    assert ended.end.at.ToDatetime() >= used.expires.at.ToDatetime()


async def test_nothing_expires_without_the_proof_that_it_was_idle(server: servers.Running) -> None:
    def forgetful(sidecar: sidecars.SimulatedSidecar) -> None:
        sidecar.activity_known = False

    server.sidecars.prepare(forgetful)
    active = await server.active(times=_times(hold_s=10, window_s=10))
    server.advance(seconds=30)
    # Another lease's whole life passes meanwhile.
    other = await server.active(servers.model("two"), times=_times(hold_s=1, window_s=1, renewal="MANUAL"))
    server.advance(seconds=2)
    await server.until_state(other.id, lease_pb2.LEASE_STATE_EXPIRED)
    assert (await server.get(active.id)).state == lease_pb2.LEASE_STATE_ACTIVE
    server.sidecars.of(active.worker_group).activity_known = True
    server.advance(seconds=6)
    assert (await server.until_state(active.id, lease_pb2.LEASE_STATE_EXPIRED)).end.reason == "Idle"


async def test_a_request_in_flight_is_use(server: servers.Running) -> None:
    active = await server.active(times=_times(hold_s=10, window_s=10))
    sidecar = server.sidecars.of(active.worker_group)
    sidecar.in_flight("one", 1)
    await server.until_read(active.id, lambda lease: lease.HasField("last_activity_at"))
    server.advance(seconds=30)
    used = await server.until_read(
        active.id, lambda lease: lease.last_activity_at.seconds >= active.active_at.seconds + 30
    )
    assert used.state == lease_pb2.LEASE_STATE_ACTIVE
    sidecar.in_flight("one", 0)
    server.advance(seconds=30)
    await server.until_state(active.id, lease_pb2.LEASE_STATE_EXPIRED)


async def test_bytes_are_offered_again_only_after_the_worker_confirmed_the_unload(server: servers.Running) -> None:
    server.sidecars.prepare(lambda sidecar: sidecar.keep())
    await server.pools.Create(_pool("small", max_workers=1))
    first = await server.active(servers.model("one", declared_bytes=2**30), pool={"pool": "small"})
    second = await server.create(servers.model("two", declared_bytes=2**30), pool={"pool": "small"})
    waits = await server.until(second.id, lambda lease: _reason(lease, "Placed") == "NoCapacity")
    assert waits.state == lease_pb2.LEASE_STATE_PENDING

    released = await server.release(first.id)
    assert released.state == lease_pb2.LEASE_STATE_RELEASING
    draining = await server.until(
        first.id, lambda lease: lease.model_statuses[0].state == common_pb2.MODEL_STATE_DRAINING
    )
    assert (await server.get(second.id)).state == lease_pb2.LEASE_STATE_PENDING

    server.sidecars.of(draining.worker_group).keep(keeping=False)
    await server.until_state(first.id, lease_pb2.LEASE_STATE_RELEASED)
    await server.until_state(second.id, lease_pb2.LEASE_STATE_ACTIVE)


async def test_a_failing_model_fails_the_lease_with_the_workers_words(server: servers.Running) -> None:
    server.sidecars.prepare(lambda sidecar: sidecar.fail("two", message="not an ONNX file"))
    made = await server.create(servers.model("one"), servers.model("two"))
    failed = await server.until_state(made.id, lease_pb2.LEASE_STATE_FAILED)
    assert failed.end.reason == "ModelFailed"
    assert "not an ONNX file" in failed.end.message
    await server.idle()


async def test_a_passing_failure_is_waited_for(server: servers.Running) -> None:
    server.sidecars.prepare(lambda sidecar: sidecar.fail("one", "StoreSilent", "no answer", retryable=True))
    made = await server.create()
    waits = await server.until(made.id, lambda lease: _reason(lease, "ModelsReady") == "StoreSilent")
    assert waits.state in (lease_pb2.LEASE_STATE_PLACED, lease_pb2.LEASE_STATE_LOADING)
    server.sidecars.of(waits.worker_group).finish("one")
    await server.until_state(made.id, lease_pb2.LEASE_STATE_ACTIVE)


async def test_a_worker_that_restarts_heals_the_lease_without_ending_it(server: servers.Running) -> None:
    active = await server.active()
    sidecar = server.sidecars.of(active.worker_group)
    sidecar.hold("one")
    sidecar.crash()
    hurt = await server.until(active.id, lambda lease: not _condition(lease, "Serving").status)
    assert hurt.state == lease_pb2.LEASE_STATE_ACTIVE
    assert hurt.endpoint == active.endpoint
    sidecar.finish("one")
    await server.until(active.id, lambda lease: _condition(lease, "Serving").status)
    assert (await server.events(active.id))[-2:] == ["Healing", "Healed"]


async def test_a_sidecar_that_is_gone_for_long_interrupts_and_one_that_comes_back_heals(
    tmp_path: pathlib.Path,
) -> None:
    machine = servers.Machine(tmp_path)
    async with servers.running(machine) as server:
        active = await server.active(times=_times(hold_s=3600, window_s=3600))
    async with servers.running(machine, with_sidecars=False) as server:
        server.advance(seconds=11)
        hurt = await server.until(active.id, lambda lease: _reason(lease, "Serving") == "WorkerLost")
        assert hurt.state == lease_pb2.LEASE_STATE_ACTIVE
    async with servers.running(machine) as server:
        await server.until(active.id, lambda lease: _condition(lease, "Serving").status)


async def test_children_end_with_their_parent(server: servers.Running) -> None:
    parent = await server.active()
    child = await server.active(servers.model("two"), parent_id=parent.id)
    grandchild = await server.create(servers.model("three"), parent_id=child.id)
    await server.release(parent.id)
    for each in (child, grandchild):
        ended = await server.until_state(each.id, lease_pb2.LEASE_STATE_REVOKED)
        assert ended.end.reason == "ParentEnded"


async def test_a_lease_that_never_becomes_active_gives_up(server: servers.Running) -> None:
    server.sidecars.prepare(lambda sidecar: sidecar.hold("one"))
    made = await server.create(times={"pending_timeout": {"seconds": 60}})
    await server.until_state(made.id, lease_pb2.LEASE_STATE_LOADING)
    server.advance(seconds=61)
    failed = await server.until_state(made.id, lease_pb2.LEASE_STATE_FAILED)
    assert failed.end.reason == "PendingTimeout"


async def test_what_was_learnt_of_the_files_is_enforced_on_later_loads(server: servers.Running) -> None:
    active = await server.active()
    sidecar = server.sidecars.of(active.worker_group)
    second = await server.active(servers.model("two"))
    assert second.worker_group == active.worker_group
    learnt = {each.name: each.files[0].sha256 for each in sidecar.told[-1].models}
    assert learnt["one"]


async def test_measured_bytes_are_booked_from_then_on(server: servers.Running) -> None:
    server.shelf.sizes["model://shelf/one"] = 5000
    first = await server.active()
    assert first.model_statuses[0].booked_bytes == 5000
    worker = await server.worker(first.id)
    assert worker.booked_bytes in (5000, 10_000)


def _times(hold_s: int, window_s: int, renewal: str = "ON_ACTIVITY") -> lease_pb2.LeaseTimes:
    return lease_pb2.LeaseTimes(
        hold=duration_pb2.Duration(seconds=hold_s),
        activity_window=duration_pb2.Duration(seconds=window_s),
        renewal=lease_pb2.Renewal.Value(f"RENEWAL_{renewal}"),
    )


def _pool(name: str, max_workers: int) -> pool_pb2.CreatePoolRequest:
    spec = pool_pb2.PoolSpec(worker=common_pb2.WorkerSpec(command="tms-worker"), max_workers=max_workers)
    return pool_pb2.CreatePoolRequest(name=name, spec=spec)


def _condition(lease: lease_pb2.Lease, type_: str) -> common_pb2.Condition:
    return next((each for each in lease.conditions if each.type == type_), common_pb2.Condition())


def _reason(lease: lease_pb2.Lease, type_: str) -> str:
    return _condition(lease, type_).reason
