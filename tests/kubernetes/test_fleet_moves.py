"""Workers that are replaced on purpose - another image, a drained node - lose no request; a drain always ends."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import kubernetes
import pytest

from protos.tms.v1 import common_pb2, lease_pb2, pool_pb2
from tests.kubernetes import clients as client_programs
from tests.kubernetes import fleet as fleets
from tests.kubernetes.cluster import waiting

pytestmark = pytest.mark.slow  # real pods start, load and stop


def test_a_pool_is_brought_to_another_image_under_load(fleet: fleets.Fleet) -> None:
    fleet.pools.Create(pool_pb2.CreatePoolRequest(name="rolled", spec=_pool("tms/worker:1")), timeout=10)
    lease = fleet.lease(pool=lease_pb2.PoolPlacement(pool="rolled"), name="rolled")
    endpoint = fleet.point("rolled", lease.id).endpoint
    with client_programs.running(lease.endpoint.host) as by_id, client_programs.running(endpoint.host) as by_name:
        fleet.pools.Update(pool_pb2.UpdatePoolRequest(name="rolled", spec=_pool("tms/worker:2")), timeout=10)
        waiting.until(lambda: _images(fleet), lambda images: images == ["tms/worker:2"], limit_s=90)
        fleet.until_serving(lease.id)
        assert by_id.onward(2.0).failed == []
        assert by_name.onward(2.0).failed == []


@pytest.mark.disruptive
def test_a_drained_node_is_left_before_anybody_evicts(fleet: fleets.Fleet) -> None:
    shared = fleet.lease(pool=lease_pb2.PoolPlacement(pool="default"))
    own = fleet.lease("three", dedicated=lease_pb2.DedicatedPlacement())
    node = str(fleet.workers_of(own)[0].spec.node_name)
    with client_programs.running(shared.endpoint.host) as one, client_programs.running(own.endpoint.host) as two:
        with _drained(fleet, node):
            for lease in (shared, own):
                pods = fleet.workers_of(fleet.until_serving(lease.id))
                assert all(each.spec.node_name != node for each in pods)
        assert one.onward(2.0).failed == []
        assert two.onward(3.0).failed == []


@pytest.mark.disruptive
def test_a_drain_ends_although_a_pod_has_no_place_to_go(place: fleets.Place, tmp_path: pathlib.Path) -> None:
    with fleets.running(place, tmp_path, drain_timeout_s=3) as fleet:
        pinned = common_pb2.WorkerSpec(profile="node-1")
        lease = fleet.lease(dedicated=lease_pb2.DedicatedPlacement(worker=pinned))
        with _drained(fleet, "node-1"):
            assert "unschedulable" in fleet.until_condition(lease.id, "Serving", "Unschedulable").message
        fleet.until_serving(lease.id)


@contextlib.contextmanager
def _drained(fleet: fleets.Fleet, node: str) -> Iterator[None]:
    """Does what `kubectl drain` does: cordons, then evicts each pod again and again until it is gone."""
    fleet.core.patch_node(node, {"spec": {"unschedulable": True}})
    try:
        waiting.until(lambda: _evicted(fleet, node), lambda left: not left, limit_s=90)
        yield
    finally:
        fleet.core.patch_node(node, {"spec": {"unschedulable": None}})


def _evicted(fleet: fleets.Fleet, node: str) -> list[str]:
    """Asks for the eviction of all that is there, and answers what was."""
    listed = fleet.core.list_namespaced_pod(fleet.namespace, field_selector=f"spec.nodeName={node}")
    names = [str(each.metadata.name) for each in listed.items if each.metadata is not None]
    for name in names:
        metadata = kubernetes.client.V1ObjectMeta(name=name, namespace=fleet.namespace)
        try:
            fleet.core.create_namespaced_pod_eviction(
                name, fleet.namespace, kubernetes.client.V1Eviction(metadata=metadata)
            )
        except kubernetes.client.ApiException as refused:
            if refused.status not in (404, 429):  # gone, or held back for now
                raise
    return names


def _pool(image: str) -> pool_pb2.PoolSpec:
    return pool_pb2.PoolSpec(worker=common_pb2.WorkerSpec(image=image), max_workers=2)


def _images(fleet: fleets.Fleet) -> list[str]:
    listed = fleet.core.list_namespaced_pod(fleet.namespace, label_selector=fleet.ours)
    return [str(each.spec.containers[0].image) for each in listed.items if each.spec is not None]
