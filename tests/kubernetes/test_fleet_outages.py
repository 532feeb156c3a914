"""The server is killed in the middle of what it does, and the API server is away: what serves goes on, nothing is doubled,
nothing is orphaned."""

from __future__ import annotations

import collections.abc
import functools

import kubernetes
import pytest

from protos.tms.v1 import lease_pb2
from tests.kubernetes import clients as client_programs
from tests.kubernetes import fleet as fleets
from tests.kubernetes.cluster import waiting

pytestmark = pytest.mark.slow  # real pods start, load and stop
Reached = collections.abc.Callable[[fleets.Fleet, str], object]
TWO_REPLICAS = lease_pb2.DedicatedPlacement(replicas=2)


def at_once(_fleet: fleets.Fleet, _lease_id: str) -> object:
    return True


def a_secret(fleet: fleets.Fleet, _lease_id: str) -> object:
    return len(fleet.made("Secret").get("Secret", ())) > 1


def a_deployment(fleet: fleets.Fleet, _lease_id: str) -> object:
    return len(fleet.made("Deployment").get("Deployment", ())) > 1


def a_service(fleet: fleets.Fleet, lease_id: str) -> object:
    return lease_id in fleet.made("Service").get("Service", ())


def a_label(fleet: fleets.Fleet, lease_id: str) -> object:
    listed = fleet.core.list_namespaced_pod(fleet.namespace, label_selector=f"lease.tms.dev/{lease_id}")
    return listed.items


def no_label(fleet: fleets.Fleet, lease_id: str) -> object:
    return not a_label(fleet, lease_id)


def no_service(fleet: fleets.Fleet, lease_id: str) -> object:
    return not a_service(fleet, lease_id)


def no_deployment(fleet: fleets.Fleet, lease_id: str) -> object:
    return not a_deployment(fleet, lease_id)


CUTS = [
    (at_once, at_once),
    (a_secret, no_label),
    (a_deployment, no_service),
    (a_service, no_deployment),
]


@pytest.mark.parametrize(("made", "gone"), CUTS, ids=lambda each: each.__name__)
def test_a_server_killed_in_the_middle_goes_on_where_it_was(fleet: fleets.Fleet, made: Reached, gone: Reached) -> None:
    bystander = fleet.lease("three")
    with client_programs.running(bystander.endpoint.host, "m", "--http", "1", "--grpc", "1") as clients:
        asked = fleet.ask()
        _kill_when(fleet, asked.id, made)
        lease = fleet.until_serving(asked.id)
        now = fleet.made()
        assert now["Deployment"] == now["Secret"] == {lease.worker_group, bystander.worker_group}
        assert now["Service"] == {f"{each.id}{end}" for each in (lease, bystander) for end in ("", "-headless")}

        fleet.release(lease.id)
        _kill_when(fleet, lease.id, gone)
        fleet.until_state(lease.id, lease_pb2.LEASE_STATE_RELEASED)
        waiting.until(lambda: fleet.made("Deployment")["Deployment"], lambda left: left == {bystander.worker_group})
        assert clients.onward(3.0).failed == []
    assert fleet.get(bystander.id).state == fleets.ACTIVE


def test_a_server_killed_while_a_lease_grows(fleet: fleets.Fleet) -> None:
    bounds = lease_pb2.Autoscaling(min_replicas=1, max_replicas=2)
    bounds.metrics.add(kind=lease_pb2.SCALING_METRIC_KIND_REQUEST_RATE, target_milli=30_000)
    lease = fleet.lease(autoscaling=bounds)
    with client_programs.running(lease.endpoint.host) as clients:
        fleet.until(lease.id, lambda now: now.wanted_replicas == 2)
        fleet.kill_server()
        clients.onward(2.0)
        fleet.start()
        fleet.until_serving(lease.id, replicas=2)
        assert clients.onward(2.0).failed == []
    assert len(fleet.workers_of(lease)) == 2


def test_a_server_that_comes_back_after_its_objects_were_edited(fleet: fleets.Fleet) -> None:
    lease, other = fleet.lease(dedicated=TWO_REPLICAS), fleet.lease("three")
    fleet.kill_server()
    fleet.apps.delete_namespaced_deployment(lease.worker_group, fleet.namespace)
    fleet.core.delete_namespaced_service(other.id, fleet.namespace)
    fleet.core.patch_namespaced_service(lease.id, fleet.namespace, {"spec": {"selector": {"app": "another"}}})
    fleet.start()
    with client_programs.running(fleet.until_serving(lease.id, replicas=2).endpoint.host) as clients:
        assert clients.onward(2.0).failed == []
    waiting.until(lambda: fleet.made("Service")["Service"], lambda found: other.id in found)
    with client_programs.running(other.endpoint.host) as clients:
        clients.onward(3.0)


@pytest.mark.disruptive
def test_the_api_server_is_away_and_comes_back(fleet: fleets.Fleet) -> None:
    staying, leaving = fleet.lease("two"), fleet.lease("three")
    with client_programs.running(staying.endpoint.host) as clients:
        with fleet.place.cluster.without("kube-apiserver"):
            asked = fleet.ask("five")
            fleet.release(leaving.id)
            assert clients.onward(2.0, requests=400).failed == []
            assert fleet.get(staying.id).state == fleets.ACTIVE
            assert fleet.get(asked.id).state < fleets.ACTIVE
        arrived = fleet.until_serving(asked.id)
        fleet.until_state(leaving.id, lease_pb2.LEASE_STATE_RELEASED)
        assert clients.onward(2.0).failed == []
    made = waiting.until(functools.partial(fleet.made, "Deployment", "Secret"), lambda it: len(it["Deployment"]) == 2)
    assert made["Deployment"] == made["Secret"] == {staying.worker_group, arrived.worker_group}
    assert not any(each.reason == "WorkerLost" for each in fleet.get(staying.id).conditions)


@pytest.mark.disruptive
def test_a_server_that_starts_while_the_api_server_is_away_says_so_and_starts_after(fleet: fleets.Fleet) -> None:
    lease = fleet.lease()
    fleet.kill_server()
    with client_programs.running(lease.endpoint.host) as clients:
        with fleet.place.cluster.without("kube-apiserver"):
            with pytest.raises(AssertionError, match="tms-server ended with 1"):
                fleet.start()
            clients.onward(2.0)
        fleet.start()
        fleet.until_serving(lease.id)
        assert clients.onward(2.0).failed == []


def _kill_when(fleet: fleets.Fleet, lease_id: str, reached: Reached) -> None:
    """Kills the server once the cluster shows how far it got, and starts it again."""
    waiting.until(lambda: _shown(fleet, lease_id, reached), bool)
    fleet.kill_server()
    fleet.start()


def _shown(fleet: fleets.Fleet, lease_id: str, reached: Reached) -> object:
    try:
        return reached(fleet, lease_id)
    except kubernetes.client.ApiException:
        return False
