"""A release of the chart with several servers on one PostgreSQL, and each of them by itself, as no client sees them."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import re
import ssl
import subprocess
import urllib.parse
import urllib.request
from typing import Any

import grpc
import kubernetes

from protos.tms.v1 import common_pb2, lease_pb2, lease_pb2_grpc, pool_pb2, pool_pb2_grpc
from tests.kubernetes import charts
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import waiting
from tests.kubernetes.cluster.kubelet import faults as faults_module
from tests.support import onnx_models
from tests.support import system as systems

SERVERS = 3
STARTED_S = 180
PATIENCE_S = 60.0
SECRET = "tms-database-url"
_API, _METRICS, _METRICS_API = 30345, 30346, 30347
_LEADS = re.compile(r"^tms_leads 1\.0$", re.MULTILINE)
_SIDECARS = re.compile(r"^tms_sidecars_connected (\d+)", re.MULTILINE)
ACTIVE = lease_pb2.LEASE_STATE_ACTIVE


@dataclasses.dataclass(frozen=True)
class Server:
    """One pod of the server's Deployment, dialled by its own address."""

    pod: str
    address: str
    channel: grpc.Channel

    @property
    def leases(self) -> lease_pb2_grpc.LeasesStub:
        return lease_pb2_grpc.LeasesStub(self.channel)

    def workers(self) -> list[pool_pb2.Worker]:
        stub = pool_pb2_grpc.WorkersStub(self.channel)
        return list(stub.List(pool_pb2.ListWorkersRequest(), timeout=PATIENCE_S).workers)

    def leads(self) -> bool:
        return _LEADS.search(self._metrics()) is not None

    def sidecars(self) -> int:
        """How many speak to this one."""
        found = _SIDECARS.search(self._metrics())
        assert found is not None
        return int(found[1])

    def state(self, lease: lease_pb2.Lease) -> lease_pb2.LeaseState.ValueType:
        return self.leases.Get(lease_pb2.GetLeaseRequest(lease=lease.id), timeout=PATIENCE_S).state

    def acquire(self, **fields: Any) -> lease_pb2.Lease:
        """A lease of the model ``two``, ACTIVE by this server's word."""
        *_, last = self.leases.Acquire(request(**fields), timeout=PATIENCE_S)
        assert last.lease.state == ACTIVE, last.lease
        return last.lease

    def metric(self, name: str, namespace: str, lease: lease_pb2.Lease, token: str) -> list[str]:
        """What this one answers an autoscaler that asks for a metric of a lease."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        selector = urllib.parse.quote(f"lease={lease.id}")
        path = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{name}?labelSelector={selector}"
        connection = http.client.HTTPSConnection(self.address, _METRICS_API, context=context, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
        return [str(each["value"]) for each in json.loads(body)["items"]]

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.address}:{_METRICS}/metrics", timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())


@dataclasses.dataclass(frozen=True)
class Where:
    """A namespace for a release, and a folder for its models."""

    cluster: cluster_client.Cluster
    api: kubernetes.client.ApiClient
    namespace: str
    folder: pathlib.Path

    @property
    def core(self) -> kubernetes.client.CoreV1Api:
        return kubernetes.client.CoreV1Api(self.api)

    @property
    def faults(self) -> faults_module.Faults:
        return faults_module.Faults(self.cluster.directory)


@dataclasses.dataclass(frozen=True)
class Installed:
    """The release, and the values that it was installed with."""

    where: Where
    helm: charts.Helm
    values: dict[str, Any]

    @property
    def core(self) -> kubernetes.client.CoreV1Api:
        return self.where.core

    @property
    def namespace(self) -> str:
        return self.where.namespace

    def ready_pods(self) -> dict[str, str]:
        """Addresses of the server's pods that are ready and stay, by name."""
        listed = self.core.list_namespaced_pod(self.namespace, label_selector="app.kubernetes.io/name=tms-server")
        return {
            str(each.metadata.name): str(each.status.pod_ip)
            for each in listed.items
            if each.metadata and not each.metadata.deletion_timestamp and each.status and _ready(each)
        }

    @contextlib.contextmanager
    def servers(self) -> collections.abc.Iterator[list[Server]]:
        """All of them, once they are as many as there should be; the one that leads comes first."""
        count = self.values["server"]["replicas"]
        pods = waiting.until(self.ready_pods, lambda found: len(found) == count, STARTED_S)
        with contextlib.ExitStack() as stack:
            found = [Server(pod, at, stack.enter_context(self._dial(at))) for pod, at in pods.items()]
            waiting.until(lambda: [each.leads() for each in found], lambda leading: sum(leading) == 1)
            yield sorted(found, key=lambda each: not each.leads())

    def workers(self) -> list[str]:
        """Pods of workers that are not on their way out, by their group."""
        selector = "app.kubernetes.io/managed-by=tms,tms.dev/group"
        listed = self.core.list_namespaced_pod(self.namespace, label_selector=selector)
        there = [each.metadata for each in listed.items if each.metadata and not each.metadata.deletion_timestamp]
        return sorted(str((each.labels or {})["tms.dev/group"]) for each in there)

    def groups(self) -> list[str]:
        """Names of the Deployments of workers."""
        apps = kubernetes.client.AppsV1Api(self.where.api)
        listed = apps.list_namespaced_deployment(self.namespace, label_selector="app.kubernetes.io/managed-by=tms")
        return sorted(str(each.metadata.name) for each in listed.items if each.metadata)

    def tmsctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the command line as a user of the Service would."""
        environment = {**os.environ, "NO_COLOR": "1", "XDG_CONFIG_HOME": str(self.where.folder / "config")}
        command = [str(systems.PROGRAMS / "tmsctl"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE_S)

    def save_target(self) -> None:
        """Lets `tmsctl` know the Service."""
        authority = self.where.folder / "ca.crt"
        authority.write_text(self.authority())
        done = self.tmsctl("target", "add", "here", f"tms.{self.namespace}.svc:{_API}", "--ca", str(authority))
        assert done.returncode == 0, done.stderr

    def upgrade(self) -> None:
        """To other settings, which replaces all servers; returns when they are ready."""
        self.helm.upgrade("tms", {**self.values, "pools": {"further": {}}}, wait="watcher", timeout=STARTED_S)

    def release_all(self) -> None:
        """Ends all leases, and sees that nothing is left in the cluster because of them."""
        with self.servers() as servers:
            living = servers[0].leases.List(lease_pb2.ListLeasesRequest(living_only=True), timeout=PATIENCE_S).leases
            for each in living:
                servers[0].leases.Release(lease_pb2.ReleaseLeaseRequest(lease=each.id), timeout=PATIENCE_S)
        waiting.until(lambda: [*self.groups(), *self.workers()], lambda left: not left, PATIENCE_S)

    def settings(self) -> str:
        """What the chart has written for its servers."""
        found = self.core.read_namespaced_config_map("tms", self.namespace).data
        assert found is not None
        return str(found["tms.toml"])

    def migration_log(self) -> str:
        """What the pods of the hook said."""
        pods = self.core.list_namespaced_pod(self.namespace, label_selector="app.kubernetes.io/name=tms-migrate").items
        names = [str(each.metadata.name) for each in pods if each.metadata]
        return "".join(str(self.core.read_namespaced_pod_log(each, self.namespace)) for each in names)

    def authority(self) -> str:
        """What clients trust, as the servers publish it."""
        published = self.core.read_namespaced_config_map("tms-ca", self.namespace).data
        assert published is not None
        return str(published["ca.crt"])

    @contextlib.contextmanager
    def _dial(self, address: str) -> collections.abc.Iterator[grpc.Channel]:
        credentials = grpc.ssl_channel_credentials(root_certificates=self.authority().encode())
        named = [("grpc.ssl_target_name_override", f"tms.{self.namespace}.svc")]
        with grpc.secure_channel(f"{address}:{_API}", credentials, named) as channel:
            yield channel


def request(**fields: Any) -> lease_pb2.CreateLeaseRequest:
    model = common_pb2.ModelReference(name="m", uri="model://models/two", declared_bytes=2**20)
    return lease_pb2.CreateLeaseRequest(models=[model], dedicated=lease_pb2.DedicatedPlacement(), **fields)


@contextlib.contextmanager
def installed(where: Where, database_url: str, servers: int = SERVERS) -> collections.abc.Iterator[Installed]:
    """The chart, its servers ready."""
    onnx_models.put(where.folder, "two", onnx_models.scale(2.0))
    secret = kubernetes.client.V1Secret(
        metadata=kubernetes.client.V1ObjectMeta(name=SECRET), string_data={"url": database_url}
    )
    where.core.create_namespaced_secret(where.namespace, secret)
    chosen = _values(where.folder, servers)
    with charts.helm(str(where.cluster.kubeconfig), where.namespace) as helm:
        helm.install("tms", chosen, wait="watcher", timeout=STARTED_S)
        yield Installed(where, helm, chosen)


def _values(folder: pathlib.Path, servers: int) -> dict[str, Any]:
    return {
        "server": {
            "replicas": servers,
            # The pods of the test cluster have addresses of their own but share the wildcard one.
            "extraArgs": [f"--{name}-address=$(POD_IP)" for name in ("api", "metrics", "metrics-api")],
            "probes": {"readiness": {"periodSeconds": 1}},
        },
        "database": {"existingSecret": SECRET},
        "migrations": {"backoffLimit": 0},
        "repositories": {"models": {"host_path": str(folder)}},
        "profiles": {"default": {"cpu_milli": 50, "termination_grace_s": 10}},
        "settings": {"kubernetes": {"connection_age_s": 2, "settle_s": 0.5}, "timing": {"report_interval_s": 0.5}},
    }


def _ready(pod: Any) -> bool:
    return any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions or ())
