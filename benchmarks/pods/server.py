"""A control plane beside the test cluster: a process of its own, so that its processor time and memory can be read."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator

import kubernetes
import psutil

from benchmarks import processes

NAMESPACE = "default"
WORKER, SIDECAR = "tms/worker:bench", "tms/sidecar:bench"
HOST = "10.244.255.1"
OURS = "app.kubernetes.io/managed-by=tms"

_SETTINGS = """
backend = "kubernetes"
data_dir = "{state}"
[api]
address = "0.0.0.0"
port = 0
dial_host = "{host}"
allow_plain = true
[metrics]
port = 0
[kubernetes]
kubeconfig = "{kubeconfig}"
namespace = "{namespace}"
worker_image = "{worker}"
sidecar_image = "{sidecar}"
watch_nodes = true
writes_per_s = 1000
[kubernetes.profiles.default]
cpu_milli = 100
memory_overhead_bytes = 67108864
sidecar_memory_bytes = 67108864
termination_grace_s = 5
lost_node_s = {lost_node_s}
{profile}
[kubernetes.profiles.default.cache]
kind = "host_path"
path = "{cache}"
[repositories.bench]
path = "{models}"
host_path = "{repository}"
[default_pool]
memory_bytes = {worker_bytes}
max_workers = {most_workers}
"""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What differs between measurements. `profile`: further lines of the shape of its pods."""

    kubeconfig: str = ""
    most_workers: int = 4
    worker_bytes: int = 2**28
    lost_node_s: int = 1
    profile: str = ""


@dataclasses.dataclass(frozen=True)
class Server:
    """One that answers: where, and the process that it is."""

    target: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """Processor time since its start."""
        used = self.process.cpu_times()
        return used.user + used.system

    def peak_bytes(self) -> int:
        """Most main memory that it ever held."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(each for each in status.splitlines() if each.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


@contextlib.contextmanager
def running(scratch: pathlib.Path, repository: pathlib.Path, shape: Shape | None = None) -> Iterator[Server]:
    """Runs until the block ends, and leaves nothing in the cluster; the models are bound where the pods see them."""
    shape = shape or Shape()
    file = scratch / "tms.toml"
    shutil.rmtree(scratch / "state", ignore_errors=True)
    for folder in (scratch / "state", scratch / "cache"):
        folder.mkdir(exist_ok=True)
    # The server looks where the pods look; both find the folder by the same path.
    places = {"state": scratch / "state", "cache": scratch / "cache", "repository": repository, "models": repository}
    fixed = {"namespace": NAMESPACE, "worker": WORKER, "sidecar": SIDECAR, "host": HOST}
    chosen = {**dataclasses.asdict(shape), "kubeconfig": shape.kubeconfig or os.environ["KUBECONFIG"]}
    file.write_text(_SETTINGS.format(**places, **fixed, **chosen))
    try:
        with processes.started(scratch, "tms-server", f"--config={file}") as ready:
            port = str(ready["api"]).rpartition(":")[2]
            yield Server(f"127.0.0.1:{port}", psutil.Process(int(ready["pid"])))
    finally:
        _sweep()


def _sweep() -> None:
    """Removes what a server made that was stopped in the middle; pods go with their owners."""
    core = kubernetes.client.CoreV1Api()
    for delete in (
        kubernetes.client.AppsV1Api().delete_collection_namespaced_deployment,
        kubernetes.client.AutoscalingV2Api().delete_collection_namespaced_horizontal_pod_autoscaler,
        kubernetes.client.PolicyV1Api().delete_collection_namespaced_pod_disruption_budget,
        core.delete_collection_namespaced_service,
        core.delete_collection_namespaced_secret,
    ):
        delete(NAMESPACE, label_selector=OURS, propagation_policy="Background")
