"""From the loss of a pod, or of its node, to the first answer of the one that takes its place."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

import grpc
import kubernetes

from benchmarks import report
from benchmarks.pods import activation, server
from protos.tms.v1 import lease_pb2_grpc
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster.kubelet import faults as faults_module

RUNS = 3
TOLERATION_S = 2
NODE_GRACE_S = 10
"""What the test cluster's controllers wait for a silent node, unless told otherwise."""
_LOOK_S = 0.02
_PATIENCE_S = 60.0
_tick = threading.Event()


def run(control: server.Server, start_s: float) -> list[report.Row]:
    """Rows; `start_s` is what the runtime itself takes from a Deployment to an answer."""
    with grpc.insecure_channel(control.target) as channel:
        leases = lease_pb2_grpc.LeasesStub(channel)
        lease_id = [update.lease for update in leases.Acquire(activation.own_worker())][-1].id
        deleted_s = statistics.median(_healed_s(lease_id, _delete) for _ in range(RUNS))
        lost_s = _lost_node_s(lease_id)
        activation.release(leases, lease_id)
    start = f"{start_s:.2f} s start of a plain Deployment"
    waits_s = NODE_GRACE_S + TOLERATION_S
    waits = f"{NODE_GRACE_S} s grace of the node, {TOLERATION_S} s toleration, {start}"
    return [
        report.Row("pod killed: to the next answer", f"{deleted_s:.2f} s", start, deleted_s / start_s),
        report.Row("beyond the runtime's start", f"{deleted_s - start_s:.2f} s", "target 1 s", deleted_s - start_s),
        report.Row("node lost: to the next answer", f"{lost_s:.1f} s", waits, lost_s / (waits_s + start_s)),
        report.Row("beyond what was waited for", f"{lost_s - waits_s - start_s:.2f} s", "target 1 s"),
    ]


def _lost_node_s(lease_id: str) -> float:
    faults = faults_module.Faults(cluster_client.Cluster.current().directory)
    (node,) = _serving(lease_id).values()
    try:
        return _healed_s(lease_id, lambda _: faults.lose_node(node))
    finally:
        faults.restore_node(node)


def _healed_s(lease_id: str, harm: Callable[[str], object]) -> float:
    (pod,) = _serving(lease_id)
    begun = time.perf_counter()
    harm(pod)
    give_up = time.monotonic() + _PATIENCE_S
    # The pod of a lost node stays written down, for nobody can tell that it is gone.
    while not _serving(lease_id).keys() - {pod}:
        if time.monotonic() > give_up:
            raise SystemExit(f"no pod took the place of {pod} within {_PATIENCE_S:.0f} s")
        _tick.wait(_LOOK_S)
    activation.first_answer(f"{lease_id}.{server.NAMESPACE}.svc")
    spent_s = time.perf_counter() - begun
    while len(_serving(lease_id)) > 1 and time.monotonic() < give_up:
        _tick.wait(_LOOK_S)
    return spent_s


def _delete(pod: str) -> None:
    """At once, as if it had died: nobody drains."""
    kubernetes.client.CoreV1Api().delete_namespaced_pod(pod, server.NAMESPACE, grace_period_seconds=0)


def _serving(lease_id: str) -> dict[str, str]:
    """Names of the pods that the lease's Services lead to, with their nodes."""
    label = f"lease.tms.dev/{lease_id}=serving"
    found = kubernetes.client.CoreV1Api().list_namespaced_pod(server.NAMESPACE, label_selector=label).items
    return {str(each.metadata.name): str(each.spec.node_name) for each in found if each.metadata and each.spec}
