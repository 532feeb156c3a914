"""Whatever is killed, lost, frozen, deleted or edited by hand comes back by itself, and the lease stays ACTIVE throughout."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import threading
from typing import Any

import grpc
import kubernetes
import pytest

from protos.tms.v1 import lease_pb2
from tests.kubernetes import clients as client_programs
from tests.kubernetes import fleet as fleets
from tests.kubernetes.cluster import waiting

pytestmark = pytest.mark.slow  # real pods start, load and stop
Break = collections.abc.Callable[[fleets.Fleet, lease_pb2.Lease], None]


@dataclasses.dataclass
class Seen:
    """All states and reasons of a lease in the time of a block."""

    states: set[lease_pb2.LeaseState.ValueType] = dataclasses.field(default_factory=set)
    reasons: set[str] = dataclasses.field(default_factory=set)


@contextlib.contextmanager
def watched(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> collections.abc.Iterator[Seen]:
    """Follows a lease on the stream that users have."""
    seen = Seen()
    stream = fleet.leases.Watch(lease_pb2.WatchLeasesRequest(leases=[lease.id]), timeout=100)

    def follow() -> None:
        with contextlib.suppress(grpc.RpcError):
            for update in stream:
                seen.states.add(update.lease.state)
                seen.reasons |= {each.reason for each in update.lease.conditions if each.type == "Serving"}

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield seen
    finally:
        stream.cancel()
        thread.join()


def pod_of(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> str:
    return fleet.pods(lease)[0]


def kill_worker(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    fleet.faults.kill_container(fleet.where(pod_of(fleet, lease)), "worker")


def kill_sidecar(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    fleet.faults.kill_container(fleet.where(pod_of(fleet, lease)), "sidecar")


def delete_pod(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    fleet.core.delete_namespaced_pod(pod_of(fleet, lease), fleet.namespace, grace_period_seconds=0)


def delete_gracefully(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    fleet.core.delete_namespaced_pod(pod_of(fleet, lease), fleet.namespace)


def evict_by_pressure(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    fleet.faults.evict(fleet.where(pod_of(fleet, lease)))


def delete_deployment(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    fleet.apps.delete_namespaced_deployment(lease.worker_group, fleet.namespace)


def scale_by_hand(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    fleet.apps.patch_namespaced_deployment(lease.worker_group, fleet.namespace, {"spec": {"replicas": 0}})


def other_image_by_hand(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    containers = [{"name": "worker", "image": "somebody/elses:1"}]
    patch = {"spec": {"template": {"spec": {"containers": containers}}}}
    fleet.apps.patch_namespaced_deployment(lease.worker_group, fleet.namespace, patch)


def delete_service(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    fleet.core.delete_namespaced_service(lease.id, fleet.namespace)


def edit_selector(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    fleet.core.patch_namespaced_service(lease.id, fleet.namespace, {"spec": {"selector": {"app": "another"}}})


def remove_label(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    labels = {f"lease.tms.dev/{lease.id}": None}
    # It is back before anybody can see that it was gone; the annotation tells that it was.
    metadata = {"labels": labels, "annotations": {"example.com/edited": "yes"}}
    fleet.core.patch_namespaced_pod(pod_of(fleet, lease), fleet.namespace, {"metadata": metadata})


def delete_secret(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> None:
    fleet.core.delete_namespaced_secret(lease.worker_group, fleet.namespace)


def version_of(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> list[Any]:
    """Changes with everything that a break can change."""
    try:
        deployment = fleet.apps.read_namespaced_deployment(lease.worker_group, fleet.namespace)
        service = fleet.core.read_namespaced_service(lease.id, fleet.namespace)
        secret = fleet.core.read_namespaced_secret(lease.worker_group, fleet.namespace)
    except kubernetes.client.ApiException:
        return ["missing"]
    pods = [_of_pod(each) for each in fleet.workers_of(lease)]
    found = (deployment, service, secret)
    return [*(each.metadata.resource_version for each in found if each.metadata), *sorted(pods)]


def _of_pod(pod: Any) -> str:
    every = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
    return f"{pod.metadata.uid} {[each.restart_count for each in every]} {sorted(pod.metadata.labels)} {pod.metadata.annotations}"


ONE_REPLICA = (
    kill_worker,
    kill_sidecar,
    delete_pod,
    evict_by_pressure,
    delete_deployment,
    scale_by_hand,
    other_image_by_hand,
    delete_service,
    edit_selector,
    remove_label,
    delete_secret,
)


@pytest.mark.parametrize("broken", ONE_REPLICA, ids=lambda each: each.__name__)
def test_a_lease_comes_back_by_itself_and_stays_active(fleet: fleets.Fleet, broken: Break) -> None:
    lease = fleet.lease()
    before = version_of(fleet, lease)
    with watched(fleet, lease) as seen, client_programs.running(lease.endpoint.host, "m", "--grpc", "1") as clients:
        broken(fleet, lease)
        waiting.until(lambda: version_of(fleet, lease), lambda now: now not in (before, ["missing"]))
        healed = fleet.until_serving(lease.id)
        clients.onward(2.0)
    assert seen.states <= {fleets.ACTIVE}
    assert healed.worker_group == lease.worker_group
    fleet.until(lease.id, lambda now: not any(each.type == "Warning" and each.status for each in now.conditions))
    waiting.until(lambda: fleet.workers_of(lease), lambda pods: len(pods) == 1)
    made = fleet.made()
    assert made["Deployment"] == made["Secret"] == {lease.worker_group}
    assert made["Service"] == {lease.id, f"{lease.id}-headless"}


@pytest.mark.parametrize("broken", [kill_sidecar, delete_gracefully, remove_label], ids=lambda each: each.__name__)
def test_with_two_replicas_no_request_fails(fleet: fleets.Fleet, broken: Break) -> None:
    said, seen = _broken_under_load(fleet, broken)
    assert said.failed == []
    assert seen.reasons <= {"Serving"}


@pytest.mark.parametrize("broken", [kill_worker, evict_by_pressure], ids=lambda each: each.__name__)
def test_with_two_replicas_an_abrupt_end_fails_only_what_it_met(fleet: fleets.Fleet, broken: Break) -> None:
    said, seen = _broken_under_load(fleet, broken)
    # Who dials between the end of the pod and the proxies' knowledge of it is refused; a gRPC client then waits a second.
    assert len(said.failed) < sum(said.count(each, 2.0) for each in said.answered)
    assert seen.reasons <= {"Serving"}


def _broken_under_load(fleet: fleets.Fleet, broken: Break) -> tuple[client_programs.Said, Seen]:
    """Breaks one of two replicas; once both serve again, no request fails any more."""
    lease = fleet.until_serving(fleet.ask(dedicated=lease_pb2.DedicatedPlacement(replicas=2)).id, replicas=2)
    with watched(fleet, lease) as seen, client_programs.running(lease.endpoint.host) as clients:
        before = version_of(fleet, lease)
        broken(fleet, lease)
        waiting.until(lambda: version_of(fleet, lease), lambda now: now not in (before, ["missing"]))
        fleet.until_serving(lease.id, replicas=2)
        healed = clients.onward(2.0)
        said = clients.onward(2.0)
    assert said.failed == healed.failed
    assert seen.states <= {fleets.ACTIVE}
    return said, seen


def test_a_frozen_worker_is_started_anew(fleet: fleets.Fleet) -> None:
    lease = fleet.until_serving(fleet.ask(dedicated=lease_pb2.DedicatedPlacement(replicas=2)).id, replicas=2)
    pod = pod_of(fleet, lease)
    with watched(fleet, lease) as seen:
        fleet.faults.freeze_container(fleet.where(pod), "worker")
        waiting.until(lambda: fleet.pods(lease), lambda pods: pod not in pods)
        with client_programs.running(lease.endpoint.host) as clients:
            fleet.until(lease.id, lambda now: now.ready_replicas == 1)
            restarts = waiting.until(lambda: _restarts(fleet, pod), bool, limit_s=90)
            fleet.until_serving(lease.id, replicas=2)
            assert clients.onward(2.0).failed == []
    assert restarts == 1
    assert seen.states <= {fleets.ACTIVE}


@pytest.mark.disruptive
@pytest.mark.parametrize("processes", ["killed", "running"])
def test_a_lost_node_and_its_return(fleet: fleets.Fleet, processes: Any) -> None:
    lease = fleet.lease()
    (pod,) = fleet.workers_of(lease)
    node = str(pod.spec.node_name)
    with watched(fleet, lease) as seen:
        fleet.faults.lose_node(node, processes)
        try:
            waiting.until(lambda: _elsewhere(fleet, lease, node), lambda pods: len(pods) == 1, limit_s=60)
            fleet.until_serving(lease.id)
            with client_programs.running(lease.endpoint.host) as clients:
                clients.onward(2.0)
                fleet.faults.restore_node(node)
                waiting.until(lambda: _all_pods(fleet, lease), lambda pods: len(pods) == 1, limit_s=60)
                said = clients.onward(2.0)
                assert said.failed == []
        finally:
            fleet.faults.restore_node(node)
    assert seen.states <= {fleets.ACTIVE}
    assert "NodeLost" in seen.reasons or processes == "running"


def _restarts(fleet: fleets.Fleet, pod: str) -> int:
    found = fleet.core.read_namespaced_pod(pod, fleet.namespace)
    assert found.status is not None
    return sum(each.restart_count for each in found.status.container_statuses or [])


def _elsewhere(fleet: fleets.Fleet, lease: lease_pb2.Lease, node: str) -> list[str]:
    selected = set(fleet.pods(lease))
    pods = fleet.workers_of(lease)
    return [each.metadata.name for each in pods if each.spec.node_name != node and each.metadata.name in selected]


def _all_pods(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> list[Any]:
    listed = fleet.core.list_namespaced_pod(fleet.namespace, label_selector=f"tms.dev/group={lease.worker_group}")
    return list(listed.items)
