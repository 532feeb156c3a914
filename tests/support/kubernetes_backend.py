"""Options and specs for tests of the Kubernetes backend, and what it takes to open one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import json
import pathlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.kubernetes.cluster.kubelet import faults as faults_module
from tms_server import clock
from tms_server.backends.kubernetes import backend as kubernetes
from tms_server.backends.kubernetes import connect
from tms_server.backends.kubernetes import options as options_module
from tms_server.model import errors, ids, lease, resources
from tms_server.ports import backend

BOUND_S = 30
GROUP = ids.GroupId("w-0123456789abcdef")
LEASE = ids.LeaseId("l-0123456789abcdef")

FULL = options_module.Profile(
    gpu_resource="nvidia.com/gpu",
    node_selector={"kubernetes.io/os": "linux"},
    affinity={
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]},
                }
            ]
        }
    },
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
    topology_spread=({"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"},),
    image_pull_policy="IfNotPresent",
    image_pull_secrets=("registry",),
    labels={"team": "vision", "tms.dev/group": "never"},
    annotations={"example.com/scrape": "yes"},
    environment={"LOG_LEVEL": "debug", "A": "b"},
    cache=options_module.Cache(size_bytes=10 * 2**30),
    cpu_milli=1500,
    token_audience="sts.example.com",
)
SCALING = backend.Scaling(
    lease_id=LEASE,
    load_s=12.3,
    autoscaling=lease.Autoscaling(
        min_replicas=1,
        max_replicas=5,
        metrics=(
            lease.ScalingMetric(kind=lease.MetricKind.QUEUE_TIME, target_milli=5000),
            lease.ScalingMetric(kind=lease.MetricKind.IN_FLIGHT, target_milli=2_000_000),
            lease.ScalingMetric(kind=lease.MetricKind.LATENCY, target_milli=1500, quantile_permille=990),
        ),
        behavior=lease.ScalingBehavior(scale_down_window=dt.timedelta(seconds=30), max_step_up=2),
    ),
)


def options(namespace: str = "tms", **changed: Any) -> options_module.Options:
    """Two programs and two profiles: ``default`` and ``full``, which uses everything that a profile can say."""
    plain = options_module.Options(
        namespace=namespace,
        installation_id=ids.InstallationId("i-test"),
        dial="tms-server.tms.svc:30345",
        sidecar_image="tms/sidecar:1",
        programs={
            "tms-worker": options_module.Program(image="tms/worker:1"),
            "triton": options_module.Program(
                image="triton:1", command=("tritonserver",), args=("--model-repository=x",)
            ),
        },
        profiles={"default": options_module.Profile(), "full": FULL},
        settle_s=0.05,
    )
    return dataclasses.replace(plain, **changed)


def spec(group_id: ids.GroupId = GROUP, **changed: Any) -> backend.LaunchSpec:
    plain = backend.LaunchSpec(
        group_id=group_id,
        namespace=ids.DEFAULT_NAMESPACE,
        worker=resources.WorkerSpec(),
        endpoint=resources.Endpoint(f"{group_id}.tms.svc", 8000, 8001, 8002),
        token="a secret",
    )
    return dataclasses.replace(plain, **changed)


@contextlib.asynccontextmanager
async def opened(
    chosen: options_module.Options, kubeconfig: pathlib.Path
) -> AsyncIterator[kubernetes.KubernetesBackend]:
    """One that is tended, as by a server that decides."""
    runs = await kubernetes.KubernetesBackend.open(
        chosen, connect.Connection(kubeconfig=kubeconfig), clock.SystemClock()
    )
    tended = asyncio.create_task(_tend(runs))
    try:
        yield runs
    finally:
        await runs.close()
        await tended


async def _tend(runs: backend.Backend) -> None:
    async for _ in runs.watch():
        with contextlib.suppress(errors.Unavailable):
            await runs.tend()


async def until(runs: backend.Backend, reached: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits on the backend's own watch."""
    steps = runs.watch()
    async with asyncio.timeout(BOUND_S):
        while True:
            found = reached()
            if found if isinstance(found, bool) else await found:
                return
            await anext(steps)


async def observed(runs: backend.Backend, group_id: ids.GroupId = GROUP) -> backend.Observed | None:
    return next((each for each in await runs.observe() if each.group_id == group_id), None)


async def trouble(runs: backend.Backend, reason: str) -> backend.Trouble:
    """Waits until the group has a trouble of that reason."""
    found: list[backend.Trouble] = []

    async def reached() -> bool:
        group = await observed(runs)
        if group is not None and group.trouble is not None and group.trouble.reason == reason:
            found.append(group.trouble)
        return bool(found)

    await until(runs, reached)
    return found[0]


def kubeconfig_of(directory: pathlib.Path, server: str, authority: pathlib.Path, token: str) -> pathlib.Path:
    """A kubeconfig of a user with a token."""
    path = directory / "user.kubeconfig"
    cluster = {"server": server, "certificate-authority": str(authority)}
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return path


def stand_ins(faults: faults_module.Faults) -> dict[str, Any]:
    """Options with images that a test cluster runs as small programs in place of worker and sidecar."""
    script = str(pathlib.Path(__file__).with_name("pod_program.py"))
    for name, port in (("worker", "8000"), ("sidecar", "8003")):
        faults.register_image(f"stand-in/{name}", [sys.executable, script, name, port])
    programs = {"tms-worker": options_module.Program(image="stand-in/worker:1")}
    # The first process of a container hears no signal before it asks for it: one that only began is killed in the end.
    short = options_module.Profile(termination_grace_s=2, lost_node_s=1)
    profiles = {"default": short, "full": dataclasses.replace(FULL, termination_grace_s=2)}
    return {"programs": programs, "sidecar_image": "stand-in/sidecar:1", "profiles": profiles}
