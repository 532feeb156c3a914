"""Leases on real pods, used by unmodified clients: requests reach loaded replicas only, spread, and follow names that move."""

from __future__ import annotations

import socket

import kubernetes
import numpy as np
import pytest
import tritonclient.http

from protos.tms.v1 import lease_pb2
from tests.kubernetes import clients as client_programs
from tests.kubernetes import fleet as fleets
from tests.kubernetes.cluster import waiting

pytestmark = pytest.mark.slow  # real pods start, load and stop
TWO_REPLICAS = lease_pb2.DedicatedPlacement(replicas=2)


def test_clients_by_name_of_the_service_reach_all_replicas_and_only_loaded_ones(fleet: fleets.Fleet) -> None:
    asked = fleet.ask(dedicated=TWO_REPLICAS)
    led_to = _led_to(fleet, asked.id, count=2)
    assert list(led_to.values()) == [True, True]
    lease = fleet.until_serving(asked.id, replicas=2)
    assert fleet.pods(lease) == sorted(led_to)

    with client_programs.running(lease.endpoint.host) as clients:
        waiting.until(lambda: [_answered(address) for address in _addresses(fleet, lease)], lambda each: min(each) > 20)
        assert clients.now().failed == []
    assert _resolved(f"{lease.id}-headless.{fleet.namespace}.svc.cluster.local") == set(_addresses(fleet, lease))
    assert len(_resolved(f"{lease.endpoint.host}.cluster.local")) == 1


def test_a_replica_that_is_added_and_one_that_goes_cost_no_request(fleet: fleets.Fleet) -> None:
    bounds = lease_pb2.Autoscaling(min_replicas=1, max_replicas=2)
    rate = bounds.metrics.add(kind=lease_pb2.SCALING_METRIC_KIND_REQUEST_RATE, target_milli=30_000)
    assert rate.target_milli
    bounds.behavior.scale_down_window.FromSeconds(2)
    bounds.behavior.period.FromSeconds(1)
    lease = fleet.lease(autoscaling=bounds)
    with client_programs.running(lease.endpoint.host, "m", "--http", "4", "--grpc", "2") as clients:
        fleet.until_serving(lease.id, replicas=2)
        grown = clients.onward(2.0)
        assert grown.failed == []
    with client_programs.running(lease.endpoint.host, "m", "--http", "1", "--grpc", "0") as clients:
        fleet.until_serving(lease.id, replicas=1)
        waiting.until(lambda: fleet.workers_of(lease), lambda pods: len(pods) == 1)
        assert clients.onward(2.0).failed == []


def test_a_name_moves_between_leases_under_clients_that_stay_connected(fleet: fleets.Fleet) -> None:
    old, new = fleet.lease("two", name="moving"), fleet.lease("three")
    endpoint = fleet.point("moving", old.id).endpoint
    with client_programs.running(endpoint.host) as clients:
        clients.only(2.0)
        fleet.point("moving", new.id)
        clients.only(3.0)
        fleet.release(old.id)
        fleet.until_state(old.id, lease_pb2.LEASE_STATE_RELEASED)
        said = clients.only(3.0)
        assert said.failed == []
        assert said.count("http", 2.0) > 0 < said.count("grpc", 2.0)
        assert said.count("http", 5.0) == 0


def test_a_name_moves_at_once_with_the_end_of_the_lease_that_had_it(fleet: fleets.Fleet) -> None:
    pool = lease_pb2.PoolPlacement(pool="default")
    old, new = fleet.lease("two", pool=pool, name="moving"), fleet.lease("three", served="m2", pool=pool)
    assert old.worker_group == new.worker_group
    fleet.release(old.id)
    with client_programs.running(new.endpoint.host, "m2") as clients:
        fleet.until_state(old.id, lease_pb2.LEASE_STATE_RELEASED)
        fleet.point("moving", new.id)
        assert clients.only(3.0).failed == []


def test_a_strangers_service_of_the_wanted_name_is_told_left_alone_and_outlived(fleet: fleets.Fleet) -> None:
    port = kubernetes.client.V1ServicePort(port=80)
    strangers = kubernetes.client.V1Service(
        metadata=kubernetes.client.V1ObjectMeta(name="taken", labels={"owner": "somebody"}),
        spec=kubernetes.client.V1ServiceSpec(ports=[port], selector={"app": "theirs"}),
    )
    fleet.core.create_namespaced_service(fleet.namespace, strangers)
    before = fleet.core.read_namespaced_service("taken", fleet.namespace)

    lease = fleet.ask(name="taken")
    told = fleet.until_condition(lease.id, "Published", "NameTaken")
    assert "taken" in told.message

    assert fleet.core.read_namespaced_service("taken", fleet.namespace) == before
    active = fleet.until_state(lease.id, fleets.ACTIVE)
    assert _infer(active.endpoint.host) == 2.0
    fleet.core.delete_namespaced_service("taken", fleet.namespace)
    fleet.until_condition(lease.id, "Published", "Published")
    assert _infer(fleet.point("taken", lease.id).endpoint.host) == 2.0


def test_names_that_kubernetes_refuses_are_refused_and_nothing_is_stored(fleet: fleets.Fleet) -> None:
    for name in ("a" * 60, "ends-headless", "two--hyphens", "l-0123456789abcdef"):
        with pytest.raises(fleets.Refused, match="name"):
            fleet.ask(name=name)
    assert fleet.made() == {}
    assert not fleet.leases.List(lease_pb2.ListLeasesRequest(living_only=True)).leases


def _led_to(fleet: fleets.Fleet, lease_id: str, count: int) -> dict[str, bool]:
    """The first pods that the lease's Service selects, and whether each had the model loaded when it was selected."""
    found: dict[str, bool] = {}
    watch = kubernetes.watch.Watch()  # type: ignore[no-untyped-call]  # theirs
    chosen = {"label_selector": f"lease.tms.dev/{lease_id}=serving", "timeout_seconds": 60}
    for event in watch.stream(fleet.core.list_namespaced_pod, fleet.namespace, **chosen):  # type: ignore[no-untyped-call]  # theirs
        pod = event["object"]
        with tritonclient.http.InferenceServerClient(f"{pod.status.pod_ip}:8000") as client:
            found.setdefault(str(pod.metadata.name), client.is_model_ready("m"))
        if len(found) == count:
            return found
    raise AssertionError(f"led to {found} only")


def _addresses(fleet: fleets.Fleet, lease: lease_pb2.Lease) -> list[str]:
    return [each.host for each in fleet.get(lease.id).worker_endpoints]


def _answered(address: str) -> int:
    """Inferences that one worker has answered, by its own count."""
    with tritonclient.http.InferenceServerClient(f"{address}:8000") as client:
        (stats,) = client.get_inference_statistics("m")["model_stats"]
        return int(stats["inference_stats"]["success"]["count"])


def _resolved(host: str) -> set[str]:
    return {str(each[4][0]) for each in socket.getaddrinfo(host, 8000, socket.AF_INET, socket.SOCK_STREAM)}


def _infer(host: str) -> float:
    tensor = tritonclient.http.InferInput("INPUT", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    with tritonclient.http.InferenceServerClient(f"{host}:8000") as client:
        return float(client.infer("m", [tensor]).as_numpy("OUTPUT")[0][0])
