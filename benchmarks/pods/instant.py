"""Nodes that answer for pods without processes, beside the test cluster's own: a kubelet of this benchmark's."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import kubernetes

from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import layout, nodes

LABEL, VALUE = "bench.tms.dev/nodes", "instant"
_FIRST, _COUNT, _PODS_EACH = 101, 2, 240
_PATIENCE_S = 60.0
_tick = threading.Event()


@contextlib.contextmanager
def running(scratch: pathlib.Path) -> Iterator[None]:
    """Nodes with room for 480 pods until the block ends; only pods that choose them by LABEL come there."""
    cluster, place = cluster_client.Cluster.current(), layout.Layout(scratch / "instant")
    place.logs.mkdir(parents=True)
    place.pki.symlink_to(cluster.layout.pki)
    nodes.write(place.nodes, tuple(_node(_FIRST + each) for each in range(_COUNT)))
    flags = (f"--kubeconfig={cluster.layout.kubeconfig('kubelet')}", f"--directory={place.directory}")
    command = (sys.executable, "-m", "tests.kubernetes.cluster.kubelet", *flags, f"--nodes={place.nodes}")
    with place.log("kubelet").open("w") as log:
        kubelet = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _until_ready(kubelet)
            yield
        finally:
            for each in range(_COUNT):
                kubernetes.client.CoreV1Api().delete_node(f"bench-{_FIRST + each}")
            kubelet.terminate()
            kubelet.wait(timeout=30)


def _node(number: int) -> nodes.Node:
    name = f"bench-{number}"
    return nodes.Node(
        name=name,
        address=f"10.244.{number}.1",
        cpu_milli=256_000,
        memory_bytes=2**40,
        pods=_PODS_EACH,
        labels={"kubernetes.io/hostname": name, LABEL: VALUE},
        taints=(nodes.Taint(LABEL, VALUE, "NoSchedule"),),
        instant=True,
    )


def _until_ready(kubelet: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up and kubelet.poll() is None:
        found = kubernetes.client.CoreV1Api().list_node(label_selector=f"{LABEL}={VALUE}").items
        if sum(_is_ready(each) for each in found) == _COUNT:
            return
        _tick.wait(0.1)
    raise SystemExit("the instant nodes did not come; see the kubelet's log")


def _is_ready(node: kubernetes.client.V1Node) -> bool:
    conditions = (node.status and node.status.conditions) or []
    untold = any(each.key.startswith("node.kubernetes.io/") for each in (node.spec and node.spec.taints) or [])
    return not untold and any(each.type == "Ready" and each.status == "True" for each in conditions)
