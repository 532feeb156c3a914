"""The fake kubelet: all nodes of a test cluster in one process, with pods' containers as real processes.

What differs from real kubelets, container runtimes and device plugins:

- One user: everything runs as user 0 of the cluster's user namespace. runAsUser, runAsNonRoot, fsGroup, capabilities,
  seccomp and privilege escalation are neither set nor looked at (the API server still validates and admits them).
- No cgroups: requests and limits bind the scheduler, not the processes. No OOM kill, no throttling, no metrics
  (`/stats`, `/metrics/resource`); ephemeral-storage limits and pressure evictions happen only at a test's word.
- No images: an image is a name for a command on this machine. A container sees the machine's files (its own root,
  read-only where the pod says so, is a tmpfs with the machine's top-level folders), not a file system of its own;
  what it writes outside of volumes is the machine's. imagePullPolicy and pull secrets are not looked at.
- One network namespace: every pod has an address of its own, but a process may bind any of them; hostPort and
  network policies mean nothing, DNS policies neither (every pod has the cluster's resolver).
- A killed pod of a lost node refuses connections at once; behind a real dead machine they time out.
- No devices: GPUs are numbers for the scheduler; nothing is allocated, no NVIDIA_VISIBLE_DEVICES.
- Pods that do not fit (a node name given in the pod) are not refused; static pods, ephemeral containers, in-place
  resize, user namespaces, runtime classes, topology and CPU managers, swap: not there.
- Volumes: emptyDir (sizeLimit and medium ignored), hostPath, secret, configMap, downwardAPI, projected,
  persistentVolumeClaim (hostPath and local volumes). Others stay unmounted with an event. Configuration is read again
  every few seconds, as kubelets do every minute.
- Back-off begins at 1 s and ends at 20 s, not 10 s and 300 s; probes have no jitter; a grace period that a second
  deletion shortens stays as it was (deletion with grace 0 works at once).
- Logs without times (`sinceTime`, `timestamps` are refused); no `exec`, `attach`, `port-forward`. A log beyond 64 MiB starts anew.
- The kubelet's end is the end of its containers; real ones go on. It is an administrator, not a node.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import pathlib
import shutil
import signal
import sys

import structlog

from tests.kubernetes.cluster import layout as layouts
from tests.kubernetes.cluster.kubelet import (
    claims,
    containers,
    control,
    faults,
    fleet,
    http_api,
    images,
    kube,
    machines,
    recorder,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes.cluster.kubelet")
    parser.add_argument("--kubeconfig", type=pathlib.Path, required=True)
    parser.add_argument("--directory", type=pathlib.Path, required=True, help="the cluster's folder")
    parser.add_argument("--nodes", type=pathlib.Path, required=True, help="JSON: what nodes to register")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(_run(parser.parse_args()))


async def _run(arguments: argparse.Namespace) -> None:
    layout = layouts.Layout(arguments.directory)
    (layout.kubelet / faults.SOCKET).unlink(missing_ok=True)
    shutil.rmtree(layout.kubelet / "pods", ignore_errors=True)  # of a kubelet before: its containers ended with it
    layout.kubelet.mkdir(mode=0o700, exist_ok=True)
    client = kube.Client.load(arguments.kubeconfig)
    tools = containers.Tools(
        client=client,
        images=images.Images(layout.kubelet / "images.json"),
        recorder=recorder.Recorder(client),
        settings=containers.Settings(),
        folder=layout.kubelet,
    )
    served = fleet.Fleet(tools, machines.read(arguments.nodes))
    provisioner = claims.Provisioner(client, layout.kubelet / "claims")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        stack.push_async_callback((await http_api.serve(served, layout)).cleanup)
        await stack.enter_async_context(await control.Control(served).listen(layout.kubelet / faults.SOCKET))
        await _until_told(asyncio.gather(served.run(), provisioner.run()))


async def _until_told(work: asyncio.Future[tuple[None, None]]) -> None:
    """Runs until SIGTERM or SIGINT, or until the work fails."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await work


if __name__ == "__main__":
    main()
