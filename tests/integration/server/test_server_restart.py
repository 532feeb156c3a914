"""What a server that comes after another finds, and what the time between costs nobody."""

from __future__ import annotations

import asyncio
import datetime as dt
import pathlib

import grpc
import pytest
from google.protobuf import duration_pb2

from protos.tms.v1 import lease_pb2, pool_pb2
from tests.support import server as servers
from tms_server import app as app_module
from tms_server.model import errors


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> servers.Machine:
    return servers.Machine(tmp_path)


async def test_a_second_server_finishes_what_the_first_began(machine: servers.Machine) -> None:
    async with servers.running(machine, with_sidecars=False) as server:
        made = await server.create(name="mine", request_id="once")
        placed = await server.until_state(made.id, lease_pb2.LEASE_STATE_PLACED)
    async with servers.running(machine) as server:
        active = await server.until_state(made.id, lease_pb2.LEASE_STATE_ACTIVE)
        assert active.worker_group == placed.worker_group
        assert list(active.names) == ["mine"]
        again = await server.create(name="mine", request_id="once")
        assert again.id == made.id
        listed = await server.workers.List(pool_pb2.ListWorkersRequest())
        assert len(listed.workers) == 1


async def test_a_lease_released_while_the_worker_could_not_confirm_is_finished_later(machine: servers.Machine) -> None:
    async with servers.running(machine) as server:
        server.sidecars.prepare(lambda sidecar: sidecar.keep())
        active = await server.active()
        await server.release(active.id)
        assert (await server.get(active.id)).state == lease_pb2.LEASE_STATE_RELEASING
    async with servers.running(machine) as server:
        await server.until_state(active.id, lease_pb2.LEASE_STATE_RELEASED)
        await server.idle()


async def test_the_time_without_a_server_is_credited_to_every_lease(machine: servers.Machine) -> None:
    times = lease_pb2.LeaseTimes(
        hold=duration_pb2.Duration(seconds=100), activity_window=duration_pb2.Duration(seconds=100)
    )
    async with servers.running(machine) as server:
        active = await server.active(times=times)
    machine.clock.advance(dt.timedelta(days=1))
    async with servers.running(machine) as server:
        found = await server.get(active.id)
        assert found.state == lease_pb2.LEASE_STATE_ACTIVE
        assert found.expires.remaining.seconds == 100
        server.advance(seconds=99)
        await server.active(servers.model("two"))
        assert (await server.get(active.id)).state == lease_pb2.LEASE_STATE_ACTIVE
        server.advance(seconds=7)
        await server.until_state(active.id, lease_pb2.LEASE_STATE_EXPIRED)


async def test_use_that_was_reported_just_before_the_end_is_kept(machine: servers.Machine) -> None:
    async with servers.running(machine) as server:
        active = await server.active()
        server.advance(minutes=5)
        server.sidecars.of(active.worker_group).use("one")
        used = await server.until_read(active.id, lambda lease: lease.HasField("last_activity_at"))
    async with servers.running(machine) as server:
        assert (await server.get(active.id)).last_activity_at == used.last_activity_at


async def test_a_model_whose_repository_is_silent_is_looked_up_later(machine: servers.Machine) -> None:
    machine.shelf.silent = True
    async with servers.running(machine) as server:
        made = await server.create()
        resolved = next(each for each in made.conditions if each.type == "Resolved")
        assert (resolved.status, resolved.reason) == (False, "RepositorySilent")
    machine.shelf.silent = False
    async with servers.running(machine) as server:
        await server.until_state(made.id, lease_pb2.LEASE_STATE_ACTIVE)


async def test_a_second_server_on_the_same_database_is_refused(machine: servers.Machine) -> None:
    async with servers.running(machine):
        with pytest.raises(errors.FailedPrecondition):
            async with servers.running(machine):
                pass


async def test_a_port_that_is_taken_is_a_clear_refusal(machine: servers.Machine, tmp_path: pathlib.Path) -> None:
    async with servers.running(machine) as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(errors.FailedPrecondition, match=str(port)):
            async with servers.running(tmp_path / "other", api={"port": port}):
                pass


async def test_streams_end_with_unavailable_when_the_server_stops(machine: servers.Machine) -> None:
    async with servers.running(machine) as server:
        watching = server.leases.Watch(lease_pb2.WatchLeasesRequest())
        await server.create()
        first = asyncio.Event()

        async def follow() -> None:
            async for _ in watching:
                first.set()

        following = asyncio.create_task(follow())
        await first.wait()
        server.app.stop()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await following
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


def test_ids_are_of_their_kind_and_never_the_same() -> None:
    made = app_module.RandomIds()
    assert made.lease() != made.lease()
    assert made.group().startswith("w-")
    assert len(made.token()) >= 32


@pytest.mark.parametrize(("mebibytes", "kept"), [(64, 1024), (512, 512)])
async def test_a_declared_pool_keeps_workers_that_its_new_shape_could_not_hold(
    machine: servers.Machine, mebibytes: int, kept: int
) -> None:
    async with servers.running(machine, routes=True, default_pool={"memory_bytes": 2**30}) as server:
        await server.active(servers.model("one", declared_bytes=2**27))
    async with servers.running(machine, routes=True, default_pool={"memory_bytes": mebibytes * 2**20}) as server:
        found = await server.pools.Get(pool_pb2.GetPoolRequest(name="default"))
        assert found.spec.worker.resources.memory_bytes == kept * 2**20
