"""From create to ACTIVE for a model that the node's cache holds, on a worker that runs, against onnxruntime's own load."""

from __future__ import annotations

import pathlib
import shutil
import statistics
import tempfile
import time

import grpc
import onnxruntime

from benchmarks import processes, report
from examples.digits import train
from protos.tms.v1 import common_pb2, lease_pb2, lease_pb2_grpc

RUNS = 7


def run() -> report.Section:
    """Seconds from the call to ACTIVE, cold (worker starts too) and warm (worker runs, bytes cached)."""
    with tempfile.TemporaryDirectory(prefix="tms-bench-") as name:
        scratch = pathlib.Path(name)
        trained = train.train(scratch)
        _keeper(trained.repository)
        loads_ms = statistics.median(_load_ms(trained.repository / "digits") for _ in range(RUNS))
        with processes.server(scratch, trained.repository) as target, grpc.insecure_channel(target) as channel:
            leases = lease_pb2_grpc.LeasesStub(channel)
            cold_ms = _active_ms(leases, "keeper")[0]
            _again_ms(leases)
            warm_ms = statistics.median(_again_ms(leases) for _ in range(RUNS))
    reference = f"{loads_ms:.1f} ms onnxruntime's own load"
    rows = [
        report.Row("create to ACTIVE, worker runs, bytes cached", f"{warm_ms:.1f} ms", reference, warm_ms / loads_ms),
        report.Row("create to ACTIVE, worker starts too (once)", f"{cold_ms:.0f} ms", reference, cold_ms / loads_ms),
    ]
    return report.Section(
        "Activation (digits, two versions)", f"medians of {RUNS} runs; two versions are loaded on both sides", rows
    )


def _load_ms(model: pathlib.Path) -> float:
    begun = time.perf_counter()
    for version in ("1", "2"):
        onnxruntime.InferenceSession(model / version / "model.onnx", providers=["CPUExecutionProvider"])
    return (time.perf_counter() - begun) * 1e3


def _keeper(repository: pathlib.Path) -> None:
    """A model of its own that keeps the worker while the measured lease comes and goes."""
    version = repository / "keeper" / "1"
    version.mkdir(parents=True)
    shutil.copy(repository / "digits" / "1" / "model.onnx", version)


def _active_ms(leases: lease_pb2_grpc.LeasesStub, name: str) -> tuple[float, str]:
    model = common_pb2.ModelReference(name=name, uri=f"model://bench/{name}", declared_bytes=2**20)
    request = lease_pb2.CreateLeaseRequest(models=[model], pool=lease_pb2.PoolPlacement())
    begun = time.perf_counter()
    last = [update.lease for update in leases.Acquire(request)][-1]
    if last.state != lease_pb2.LEASE_STATE_ACTIVE:
        raise SystemExit(f"lease {last.id} is {lease_pb2.LeaseState.Name(last.state)}: {last.end.message}")
    return (time.perf_counter() - begun) * 1e3, last.id


def _again_ms(leases: lease_pb2_grpc.LeasesStub) -> float:
    spent_ms, lease_id = _active_ms(leases, "digits")
    leases.Release(lease_pb2.ReleaseLeaseRequest(lease=lease_id))
    for _ in leases.Watch(lease_pb2.WatchLeasesRequest(leases=[lease_id])):
        pass
    return spent_ms
