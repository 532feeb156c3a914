"""From the call to the first answer through the Service: a lease of TMS beside a plain Deployment of the same worker."""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import kubernetes

from benchmarks import report
from benchmarks.pods import server
from protos.tms.v1 import common_pb2, lease_pb2, lease_pb2_grpc

RUNS = 5
PATIENCE_S = 60.0
PAUSE_S = 0.01
TRY_S = 0.1
"""A connection that begins before there is an endpoint may never be answered; the next one is."""
_BODY = json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]})
_tick = threading.Event()


def run(control: server.Server, repository: pathlib.Path) -> tuple[list[report.Row], float]:
    """Rows: cold start of a worker beside the plain Deployment, and a lease on a worker that runs.

    Beside them the seconds that the plain Deployment takes: the runtime's own start.
    """
    with grpc.insecure_channel(control.target) as channel:
        leases = lease_pb2_grpc.LeasesStub(channel)
        _own_worker_ms(leases)
        plain, own = [], []
        for number in range(RUNS):
            plain.append(_plain_ms(repository, f"plain-{number}"))
            own.append(_own_worker_ms(leases))
        with _held(leases, "keeper"):
            shared = [_shared_ms(leases) for _ in range(RUNS)]
    reference, figure, warm = (statistics.median(each) for each in (plain, own, shared))
    said = f"{reference:.0f} ms plain Deployment with --load-model"
    rows = [
        report.Row("create to first answer, worker of its own", f"{figure:.0f} ms", said, figure / reference),
        report.Row("TMS' own share of it", f"{figure - reference:.0f} ms", "target 300 ms", (figure - reference) / 300),
        report.Row("create to first answer, worker runs", f"{warm:.0f} ms", said, warm / reference),
    ]
    return rows, reference / 1e3


def _own_worker_ms(leases: lease_pb2_grpc.LeasesStub) -> float:
    return _lease_ms(leases, own_worker())


def _shared_ms(leases: lease_pb2_grpc.LeasesStub) -> float:
    request = lease_pb2.CreateLeaseRequest(models=[_model("digits")], pool=lease_pb2.PoolPlacement())
    return _lease_ms(leases, request)


def _lease_ms(leases: lease_pb2_grpc.LeasesStub, request: lease_pb2.CreateLeaseRequest) -> float:
    begun = time.perf_counter()
    made = leases.Create(request)
    first_answer(f"{made.id}.{server.NAMESPACE}.svc")
    spent_ms = (time.perf_counter() - begun) * 1e3
    release(leases, made.id)
    return spent_ms


@contextlib.contextmanager
def _held(leases: lease_pb2_grpc.LeasesStub, name: str) -> Iterator[None]:
    """A lease of another model that keeps the pool's worker."""
    request = lease_pb2.CreateLeaseRequest(models=[_model(name)], pool=lease_pb2.PoolPlacement())
    last = [update.lease for update in leases.Acquire(request)][-1]
    yield
    release(leases, last.id)


def own_worker() -> lease_pb2.CreateLeaseRequest:
    """A lease of the model ``digits`` on a worker of its own."""
    worker = common_pb2.WorkerSpec(resources=common_pb2.Resources(memory_bytes=2**26))
    placement = lease_pb2.DedicatedPlacement(worker=worker)
    return lease_pb2.CreateLeaseRequest(models=[_model("digits")], dedicated=placement)


def release(leases: lease_pb2_grpc.LeasesStub, lease_id: str) -> None:
    """Returns once nothing of it is left on its worker."""
    leases.Release(lease_pb2.ReleaseLeaseRequest(lease=lease_id))
    for _ in leases.Watch(lease_pb2.WatchLeasesRequest(leases=[lease_id])):
        pass


def _model(name: str) -> common_pb2.ModelReference:
    return common_pb2.ModelReference(name=name, uri=f"model://bench/{name}", declared_bytes=2**20)


def first_answer(host: str) -> None:
    """Asks for an inference until there is an answer; SystemExit when there is none for a minute."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(host, 8000, timeout=TRY_S)
            connection.request("POST", "/v2/models/digits/infer", _BODY)
            if connection.getresponse().status == 200:
                return
        _tick.wait(PAUSE_S)
    raise SystemExit(f"{host} did not answer within {PATIENCE_S:.0f} s")


def _plain_ms(repository: pathlib.Path, name: str) -> float:
    apps, core = kubernetes.client.AppsV1Api(), kubernetes.client.CoreV1Api()
    begun = time.perf_counter()
    apps.create_namespaced_deployment(server.NAMESPACE, _deployment(repository, name))
    core.create_namespaced_service(server.NAMESPACE, _service(name))
    first_answer(f"{name}.{server.NAMESPACE}.svc")
    spent_ms = (time.perf_counter() - begun) * 1e3
    core.delete_namespaced_service(name, server.NAMESPACE)
    apps.delete_namespaced_deployment(name, server.NAMESPACE)
    return spent_ms


def _deployment(repository: pathlib.Path, name: str) -> Any:
    args = ["--model-repository=/models", "--model-control-mode=explicit", "--load-model=digits"]
    args += [f"--{front}-address=$(POD_IP)" for front in ("http", "grpc", "metrics")]
    probe = {"httpGet": {"path": "/v2/health/ready", "port": 8000}, "periodSeconds": 1}
    worker = {
        "name": "worker",
        "image": server.WORKER,
        "args": args,
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "startupProbe": {**probe, "failureThreshold": 60},
        "readinessProbe": probe,
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    pod = {"containers": [worker], "volumes": [{"name": "models", "hostPath": {"path": str(repository)}}]}
    template = {"metadata": {"labels": {"app": name}}, "spec": {**pod, "terminationGracePeriodSeconds": 5}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def _service(name: str) -> Any:
    spec = {"selector": {"app": name}, "ports": [{"name": "http", "port": 8000}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
