"""The section ``kubernetes`` of the benchmarks; needs a test cluster around it."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile

import kubernetes

from benchmarks import report
from benchmarks.pods import activation, fleet, healing, server
from examples.digits import train
from tests.kubernetes.cluster import client as cluster_client


def has_cluster() -> bool:
    """Whether this process runs inside a test cluster."""
    return cluster_client.VARIABLE in os.environ


def run() -> report.Section:
    """Measures in the cluster around this process; SystemExit says how to get one."""
    if not has_cluster():
        raise SystemExit(
            "kubernetes: no test cluster around; run make bench-kubernetes, or\n"
            "python -m tests.kubernetes.cluster exec -- python -m benchmarks kubernetes"
        )
    kubernetes.config.load_kube_config()  # type: ignore[no-untyped-call]  # theirs
    loaded = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tms-bench-") as name:
        scratch = pathlib.Path(name)
        repository = _repository(scratch)
        with server.running(scratch, repository, server.Shape(lost_node_s=healing.TOLERATION_S)) as control:
            measured, plain_s = activation.run(control, repository)
            rows = [*measured, *healing.run(control, plain_s)]
        rows += fleet.run(scratch, repository)
    method = (
        f"medians; pods are local processes; load of the machine {loaded:.1f} before, {os.getloadavg()[0]:.1f} after"
    )
    return report.Section("Kubernetes (test cluster)", method, rows)


def _repository(scratch: pathlib.Path) -> pathlib.Path:
    """With the models ``digits`` and ``keeper``."""
    trained = train.train(scratch)
    keeper = trained.repository / "keeper" / "1"
    keeper.mkdir(parents=True)
    shutil.copy(trained.repository / "digits" / "1" / "model.onnx", keeper)
    return trained.repository
