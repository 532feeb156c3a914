"""A control plane beside the test cluster: a process of its own, so that its processor time and memory can be read."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import psutil

from benchmarks import processes

NAMESPACE = "default"
WORKER, SIDECAR = "tms/worker:bench", "tms/sidecar:bench"
HOST = "10.244.255.1"

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
[kubernetes.profiles.default.cache]
kind = "host_path"
path = "{cache}"
[repositories.bench]
path = "{models}"
host_path = "{repository}"
[default_pool]
memory_bytes = 268435456
max_workers = {most}
"""


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
def running(scratch: pathlib.Path, repository: pathlib.Path, kubeconfig: str = "", most: int = 400) -> Iterator[Server]:
    """Runs until the block ends; the models are bound where the pods see them."""
    file = scratch / "tms.toml"
    for folder in (scratch / "state", scratch / "cache"):
        folder.mkdir(exist_ok=True)
    # The server looks where the pods look; both find the folder by the same path.
    settings = {
        "state": scratch / "state",
        "cache": scratch / "cache",
        "repository": repository,
        "models": repository,
        "kubeconfig": kubeconfig or os.environ["KUBECONFIG"],
        "namespace": NAMESPACE,
        "worker": WORKER,
        "sidecar": SIDECAR,
        "host": HOST,
        "most": most,
    }
    file.write_text(_SETTINGS.format(**settings))
    with processes.started(scratch, "tms-server", f"--config={file}") as ready:
        port = str(ready["api"]).rpartition(":")[2]
        yield Server(f"127.0.0.1:{port}", psutil.Process(int(ready["pid"])))
