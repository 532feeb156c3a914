"""Replicas, growth, changed pools and images over the real wire, on a backend in memory that leads clients itself."""

from __future__ import annotations

import asyncio
import pathlib

import grpc
import pytest

from protos.tms.v1 import common_pb2, lease_pb2, pool_pb2
from tests.support import server as servers
from tms_server.model import ids
from tms_server.ports import backend as backend_module

ACTIVE = lease_pb2.LEASE_STATE_ACTIVE
DEDICATED = lease_pb2.DedicatedPlacement(worker=common_pb2.WorkerSpec(command="tms-worker"), replicas=2)


def condition(found: lease_pb2.Lease, type_: str) -> tuple[bool, str]:
    told = next((each for each in found.conditions if each.type == type_), common_pb2.Condition())
    return told.status, told.reason


def routed(server: servers.Running, lease_id: str) -> set[str]:
    return {w.replica for each in server.backend.world.routes if each.lease_id == lease_id for w in each.workers}


async def ready(server: servers.Running, lease_id: str, replicas: int) -> lease_pb2.Lease:
    return await server.until(lease_id, lambda found: found.state == ACTIVE and found.ready_replicas == replicas)


async def test_a_lease_with_replicas_is_led_to_each_and_loses_none_but_the_one_that_goes(
    tmp_path: pathlib.Path,
) -> None:
    async with servers.running(tmp_path, routes=True) as server:
        made = await server.create(dedicated=DEDICATED)
        found = await ready(server, made.id, 2)
        group_id = ids.GroupId(found.worker_group)
        assert (found.wanted_replicas, found.dedicated.replicas) == (2, 2)
        assert len(routed(server, made.id)) == 2
        worker = await server.worker(made.id)
        assert {each.id for each in worker.replicas} == routed(server, made.id)
        assert all(each.state == pool_pb2.WORKER_STATE_READY for each in worker.replicas)
        server.backend.lose_replica(group_id, server.backend.world.groups[group_id].replicas[0])
        async with asyncio.timeout(servers.PATIENCE_S):
            steps = server.backend.watch()
            while len(routed(server, made.id)) != 1:
                await anext(steps)
        assert condition(await server.get(made.id), "Serving") == (True, "Serving")
        assert "Healing" not in await server.events(made.id)
        # What is left is told to unload only after nobody is led there.
        await server.release(made.id)
        await server.until(made.id, lambda found: found.state == lease_pb2.LEASE_STATE_RELEASED)
        assert routed(server, made.id) == set()


async def test_the_backends_reason_reaches_who_watches(tmp_path: pathlib.Path) -> None:
    async with servers.running(tmp_path, routes=True) as server:
        server.sidecars.prepare(lambda sidecar: sidecar.mute())
        made = await server.create(dedicated=DEDICATED)
        placed = await server.until(made.id, lambda found: bool(found.worker_group))
        async with asyncio.timeout(servers.PATIENCE_S):
            steps = server.backend.watch()
            while placed.worker_group not in server.backend.world.groups:
                await anext(steps)
        against = backend_module.Trouble("Unschedulable", "0/2 nodes: Insufficient nvidia.com/gpu")
        server.backend.trouble(ids.GroupId(placed.worker_group), against)
        told = await server.until(made.id, lambda found: condition(found, "ModelsReady") == (False, "Unschedulable"))
        assert told.state != ACTIVE
        why = await server.leases.Explain(lease_pb2.ExplainLeaseRequest(lease=made.id))
        assert "Insufficient nvidia.com/gpu" in why.summary


async def test_a_changed_pool_reaches_its_workers(tmp_path: pathlib.Path) -> None:
    async with servers.running(tmp_path, routes=True) as server:
        found = await server.active()
        group_id = ids.GroupId(found.worker_group)
        listed = await server.pools.Get(pool_pb2.GetPoolRequest(name="default"))
        listed.spec.worker.resources.cpu_milli = 500
        changed = await server.pools.Update(pool_pb2.UpdatePoolRequest(name="default", spec=listed.spec))
        assert changed.spec.worker.resources.cpu_milli == 500
        async with asyncio.timeout(servers.PATIENCE_S):
            steps = server.backend.watch()
            while server.backend.spec(group_id).worker.resources.cpu_milli != 500:
                await anext(steps)
        assert (await server.get(found.id)).state == ACTIVE


async def test_growth_is_kept_with_the_lease(tmp_path: pathlib.Path) -> None:
    async with servers.running(tmp_path, routes=True) as server:
        growth = lease_pb2.Autoscaling(max_replicas=4)
        made = await server.create(dedicated=DEDICATED, autoscaling=growth)
        assert (made.autoscaling.min_replicas, made.autoscaling.max_replicas) == (1, 4)
        assert [each.target_milli for each in made.autoscaling.metrics] == [4000]
        found = await ready(server, made.id, 2)
        scaling = server.backend.spec(ids.GroupId(found.worker_group)).scaling
        assert scaling is not None
        assert scaling.lease_id == made.id


async def test_images_are_allowed_listed_and_forbidden(tmp_path: pathlib.Path) -> None:
    asked = lease_pb2.DedicatedPlacement(worker=common_pb2.WorkerSpec(image="there/worker:1"))
    async with servers.running(tmp_path, routes=True, images=("here/*",)) as server:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.create(dedicated=asked)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "dedicated.worker.image" in (refused.value.details() or "")
        await server.images.Allow(pool_pb2.AllowImageRequest(pattern="there/worker:*"))
        await server.create(dedicated=asked)
        listed = await server.images.List(pool_pb2.ListImageRulesRequest())
        assert [(each.pattern, each.from_settings) for each in listed.rules] == [
            ("here/*", True),
            ("there/worker:*", False),
        ]
        await server.images.Forbid(pool_pb2.ForbidImageRequest(pattern="there/worker:*"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.images.Forbid(pool_pb2.ForbidImageRequest(pattern="here/*"))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
