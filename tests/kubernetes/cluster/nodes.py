"""The nodes of a test cluster as values: what a fake kubelet shall register. Talks to nobody."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from tests.kubernetes.cluster import layout

MAX_NODES = 250


@dataclasses.dataclass(frozen=True)
class Taint:
    """A taint as Kubernetes writes it: KEY[=VALUE]:EFFECT."""

    key: str
    value: str
    effect: str

    @classmethod
    def parse(cls, text: str) -> Taint:
        pair, separator, effect = text.rpartition(":")
        key, _, value = pair.partition("=")
        if not separator or not key or effect not in {"NoSchedule", "PreferNoSchedule", "NoExecute"}:
            raise ValueError(f"taint {text!r}: write KEY[=VALUE]:NoSchedule, :PreferNoSchedule or :NoExecute")
        return cls(key, value, effect)


@dataclasses.dataclass(frozen=True)
class Node:
    """One node: its pods' addresses are those of its own /24, `address` is its first."""

    name: str
    address: str
    cpu_milli: int
    memory_bytes: int
    pods: int
    resources: dict[str, int] = dataclasses.field(default_factory=dict)
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    instant: bool = False


@dataclasses.dataclass(frozen=True)
class Shape:
    """What all worker nodes of a cluster have."""

    count: int = 2
    cpu_milli: int = 16_000
    memory_bytes: int = 64 << 30
    pods: int = 110
    gpus: int = 8
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    instant: bool = False


def of(shape: Shape) -> tuple[Node, ...]:
    """Makes the control plane's node, which takes no pod, and `shape.count` worker nodes beside it.

    Raises:
        ValueError: more nodes than the pod range has room for.
    """
    if not 0 <= shape.count <= MAX_NODES:
        raise ValueError(
            f"nodes: {shape.count} is not between 0 and {MAX_NODES}, as many as the pod range has /24s for"
        )
    return (_control_plane(), *(_worker(index, shape) for index in range(1, shape.count + 1)))


def write(path: pathlib.Path, nodes: tuple[Node, ...]) -> None:
    path.write_text(json.dumps([dataclasses.asdict(node) for node in nodes], indent=1))


def _control_plane() -> Node:
    role = "node-role.kubernetes.io/control-plane"
    name = layout.CONTROL_PLANE_NODE
    return Node(
        name=name,
        address=layout.HOST_ADDRESS,
        cpu_milli=2_000,
        memory_bytes=4 << 30,
        pods=0,
        labels=_machine_labels(name) | {role: ""},
        taints=(Taint(role, "", "NoSchedule"),),
    )


def _worker(index: int, shape: Shape) -> Node:
    name = f"node-{index}"
    zone = {"topology.kubernetes.io/region": "test", "topology.kubernetes.io/zone": f"test-{'ab'[index % 2]}"}
    return Node(
        name=name,
        address=f"10.244.{index}.1",
        cpu_milli=shape.cpu_milli,
        memory_bytes=shape.memory_bytes,
        pods=shape.pods,
        resources={"nvidia.com/gpu": shape.gpus} if shape.gpus else {},
        labels=_machine_labels(name) | zone | _gpu_labels(shape.gpus) | shape.labels,
        taints=shape.taints,
        instant=shape.instant,
    )


def _machine_labels(name: str) -> dict[str, str]:
    """What every real kubelet says of its machine."""
    return {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}


def _gpu_labels(count: int) -> dict[str, str]:
    """What NVIDIA's GPU feature discovery says of a node; memory in MiB."""
    if not count:
        return {}
    return {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.count": str(count),
        "nvidia.com/gpu.product": "NVIDIA-L40S",
        "nvidia.com/gpu.memory": "46068",
        "nvidia.com/mig.capable": "false",
    }
