"""The section ``kubernetes`` of the benchmarks; needs a test cluster around it."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile

import kubernetes

from benchmarks import report
from benchmarks.pods import activation
from examples.digits import train


def run() -> report.Section:
    """Measures in the cluster of $TMS_CLUSTER; SystemExit says how to get one."""
    if "TMS_CLUSTER" not in os.environ:
        raise SystemExit("no test cluster: make bench starts one, or python -m tests.kubernetes.cluster exec -- ...")
    kubernetes.config.load_kube_config()  # type: ignore[no-untyped-call]  # theirs
    with tempfile.TemporaryDirectory(prefix="tms-bench-") as name:
        scratch = pathlib.Path(name)
        trained = train.train(scratch)
        keeper = trained.repository / "keeper" / "1"
        keeper.mkdir(parents=True)
        shutil.copy(trained.repository / "digits" / "1" / "model.onnx", keeper)
        rows = activation.run(scratch, trained.repository)
    return report.Section("Kubernetes (test cluster)", "medians; pods are local processes of the test cluster", rows)
