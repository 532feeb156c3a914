"""The whole system on the test cluster: tms-server as a process beside it, with the rights of the chart's own account and
no others; workers and sidecars as pods of real processes; what is in the cluster because of them."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import json
import pathlib
from typing import Any

import grpc
import kubernetes

from protos.tms.v1 import common_pb2, lease_pb2, pool_pb2
from tests.kubernetes import charts
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import layout, waiting
from tests.kubernetes.cluster.kubelet import faults as faults_module
from tests.support import kubernetes_backend, onnx_models
from tests.support import system as systems

Json = dict[str, Any]
LEFT_S = 90
"""Long: after an outage of the API server the controllers come back in their own time, and only they delete pods."""
Refused = grpc.RpcError
ACTIVE = lease_pb2.LEASE_STATE_ACTIVE
FACTORS = {"two": 2.0, "three": 3.0, "five": 5.0}
"""Models of the repository: OUTPUT = INPUT * factor, so that an answer says which one gave it."""
PROFILE: Json = {"cpu_milli": 50, "termination_grace_s": 15, "lost_node_s": 1, "start_bound_s": 60}
KUBERNETES: Json = {
    "worker_image": "tms/worker:1",
    "sidecar_image": "tms/sidecar:1",
    "watch_nodes": True,
    "settle_s": 0.5,
    "connection_age_s": 2,
    "profiles": {
        "default": PROFILE,
        "nowhere": {**PROFILE, "node_selector": {"disk": "golden"}},
        "apart": {
            **PROFILE,
            "topology_spread": [
                {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
            ],
        },
        **{name: {**PROFILE, "node_selector": {"kubernetes.io/hostname": name}} for name in ("node-1", "node-2")},
    },
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a server works and as whom."""

    cluster: cluster_client.Cluster
    api: kubernetes.client.ApiClient
    namespace: str
    kubeconfig: pathlib.Path


class Fleet(systems.System):
    """A server of one Kubernetes namespace."""

    def __init__(self, place: Place, folder: pathlib.Path, *flags: str, **chosen: Any) -> None:
        """`chosen`: settings of the section kubernetes that differ from those of all tests."""
        super().__init__(folder, folder / "repository", *flags)
        self.place, self._chosen = place, chosen
        self.faults = faults_module.Faults(place.cluster.directory)
        self.repository.mkdir(exist_ok=True)
        for name, factor in FACTORS.items():
            onnx_models.put(self.repository, name, onnx_models.scale(factor))

    @property
    def namespace(self) -> str:
        """Of Kubernetes."""
        return self.place.namespace

    @property
    def ours(self) -> str:
        """Selects what this installation made."""
        lines = [json.loads(line) for line in self.log().splitlines() if '"kubernetes.opened"' in line]
        return f"app.kubernetes.io/managed-by=tms,tms.dev/installation={lines[0]['installation']}"

    @property
    def core(self) -> kubernetes.client.CoreV1Api:
        """The administrator's."""
        return kubernetes.client.CoreV1Api(self.place.api)

    @property
    def apps(self) -> kubernetes.client.AppsV1Api:
        return kubernetes.client.AppsV1Api(self.place.api)

    def backend_flags(self) -> list[str]:
        """Sections are given as a file: profiles are no flags."""
        settings = self.folder / "tms.toml"
        chosen = {"namespace": self.namespace, "kubeconfig": str(self.place.kubeconfig), **KUBERNETES, **self._chosen}
        folder = {"path": str(self.repository), "host_path": str(self.repository)}
        settings.write_text(
            "\n".join(
                [
                    'backend = "kubernetes"',
                    f"kubernetes = {_toml(chosen)}",
                    f"repositories = {_toml({'models': folder})}",
                    'images = ["tms/*", "nowhere.example/*"]',
                ]
            )
        )
        beyond = [f"--api-address={layout.HOST_ADDRESS}", "--api-allow-plain"]
        timing = ["--timing-report-interval-s=0.2", "--timing-lost-after-s=2", "--timing-heartbeat-s=0.5"]
        return [f"--config={settings}", *beyond, *timing, "--workers-memory-bytes=268435456"]

    def lease(self, model: str = "two", served: str = "m", **fields: Any) -> lease_pb2.Lease:
        """A lease of one model, ACTIVE; on a worker of its own unless a pool is named."""
        return self.until_state(self.ask(model, served, **fields).id, ACTIVE)

    def ask(self, model: str = "two", served: str = "m", **fields: Any) -> lease_pb2.Lease:
        """As `lease`, not waited for."""
        if "pool" not in fields:
            fields.setdefault("dedicated", lease_pb2.DedicatedPlacement())
        return self.create(systems.model(served, f"model://models/{model}"), **fields)

    def release(self, lease_id: str) -> None:
        self.leases.Release(lease_pb2.ReleaseLeaseRequest(lease=lease_id), timeout=systems.PATIENCE_S)

    def get(self, lease: str) -> lease_pb2.Lease:
        return self.leases.Get(lease_pb2.GetLeaseRequest(lease=lease), timeout=systems.PATIENCE_S)

    def point(self, name: str, lease_id: str) -> lease_pb2.LeaseName:
        return self.names.Set(lease_pb2.SetLeaseNameRequest(name=name, lease_id=lease_id), timeout=systems.PATIENCE_S)

    def until_condition(self, lease_id: str, kind: str, reason: str) -> common_pb2.Condition:
        """Waits on the lease's own stream until a condition is false for that reason."""
        seen = self.until(lease_id, lambda lease: _stands(lease, kind, reason) is not None)
        found = _stands(seen, kind, reason)
        assert found is not None
        return found

    def until_reason(self, lease_id: str, reason: str) -> common_pb2.Condition:
        """As `until_condition`, whichever condition it is that tells."""
        seen = self.until(lease_id, lambda lease: any(each.reason == reason for each in lease.conditions))
        return next(each for each in seen.conditions if each.reason == reason)

    def until_serving(self, lease_id: str, replicas: int = 1) -> lease_pb2.Lease:
        """Waits until a lease serves with all of its replicas."""
        return self.until(
            lease_id,
            lambda lease: (
                lease.state == ACTIVE
                and lease.ready_replicas == lease.wanted_replicas == replicas
                and any(each.type == "Serving" and each.status for each in lease.conditions)
            ),
        )

    def pods(self, lease: lease_pb2.Lease) -> list[str]:
        """Names of the pods that its Service may lead to."""
        listed = self.core.list_namespaced_pod(self.namespace, label_selector=f"lease.tms.dev/{lease.id}=serving")
        return sorted(str(each.metadata.name) for each in listed.items if each.metadata is not None)

    def workers_of(self, lease: lease_pb2.Lease) -> list[Any]:
        """The pods of its worker group that stay. One that has ended, as an evicted one, is history that Kubernetes keeps."""
        listed = self.core.list_namespaced_pod(self.namespace, label_selector=f"tms.dev/group={lease.worker_group}")
        return [
            each
            for each in listed.items
            if each.metadata and each.status and not each.metadata.deletion_timestamp and each.status.phase != "Failed"
        ]

    def where(self, pod: str) -> str:
        """As the kubelet calls it."""
        return f"{self.namespace}/{pod}"

    def made(self, *kinds: str) -> dict[str, set[str]]:
        """Names of all living objects of this installation, by kind; pods that are leaving included. Of all kinds, or of
        these."""
        scalers = kubernetes.client.AutoscalingV2Api(self.place.api)
        budgets = kubernetes.client.PolicyV1Api(self.place.api)
        lists: dict[str, collections.abc.Callable[..., Any]] = {
            "Deployment": self.apps.list_namespaced_deployment,
            "ReplicaSet": self.apps.list_namespaced_replica_set,
            "Pod": self.core.list_namespaced_pod,
            "Service": self.core.list_namespaced_service,
            "Secret": self.core.list_namespaced_secret,
            "HorizontalPodAutoscaler": scalers.list_namespaced_horizontal_pod_autoscaler,
            "PodDisruptionBudget": budgets.list_namespaced_pod_disruption_budget,
        }
        ours, found = self.ours, {}
        for kind in kinds or lists:
            listed = lists[kind](self.namespace, label_selector=ours).items
            if listed:
                found[kind] = {str(each.metadata.name) for each in listed}
        return found

    def sweep(self) -> None:
        """Ends all leases and pools, and sees that nothing is left in the cluster because of them."""
        if not self.runs():
            self.start()
        for name in self.names.List(lease_pb2.ListLeaseNamesRequest(), timeout=systems.PATIENCE_S).names:
            self.names.Delete(lease_pb2.DeleteLeaseNameRequest(name=name.name), timeout=systems.PATIENCE_S)
        living = self.leases.List(lease_pb2.ListLeasesRequest(living_only=True), timeout=systems.PATIENCE_S).leases
        for lease in living:
            self.release(lease.id)
        for pool in self.pools.List(pool_pb2.ListPoolsRequest(), timeout=systems.PATIENCE_S).pools:
            if pool.name != "default":
                self.pools.Delete(pool_pb2.DeletePoolRequest(name=pool.name, revoke_leases=True), timeout=30)
        for kinds in (("Pod",), ()):  # most time goes by until the pods are gone
            waiting.until(functools.partial(self.made, *kinds), lambda made: not made, limit_s=LEFT_S)


def place(
    cluster: cluster_client.Cluster, folder: pathlib.Path, helm: charts.Helm, api: kubernetes.client.ApiClient
) -> Place:
    """The rights that the chart gives its server in Helm's namespace, without a server of the chart."""
    helm.install(
        "tms", {"server": {"replicas": 0}, "metricsApi": {"enabled": False}, "persistence": {"enabled": False}}
    )
    request = kubernetes.client.AuthenticationV1TokenRequest(spec=kubernetes.client.V1TokenRequestSpec(audiences=[]))
    core = kubernetes.client.CoreV1Api(api)
    answer = core.create_namespaced_service_account_token("tms", helm.namespace, request)
    assert answer.status is not None
    token = str(answer.status.token)
    kubeconfig = kubernetes_backend.kubeconfig_of(folder, cluster.server, cluster.ca_certificate, token)
    return Place(cluster, api, helm.namespace, kubeconfig)


@contextlib.contextmanager
def running(place: Place, folder: pathlib.Path, *flags: str, **chosen: Any) -> collections.abc.Iterator[Fleet]:
    """A server for the length of a block, which leaves nothing in the cluster."""
    fleet = Fleet(place, folder, *flags, **chosen)
    fleet.start()
    try:
        yield fleet
        fleet.sweep()
    finally:
        fleet.stop()


def _stands(lease: lease_pb2.Lease, kind: str, reason: str) -> common_pb2.Condition | None:
    found = (each for each in lease.conditions if each.type == kind and each.reason == reason)
    return next(found, None)


def _toml(value: Any) -> str:
    """JSON but for objects, which are inline tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
