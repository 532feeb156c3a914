"""A thousand leases over three hundred worker groups whose pods need no time: what is left is TMS and the API server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import AsyncIterator

import grpc

from benchmarks import report
from benchmarks.pods import api_rate, calls, instant, server, sidecars
from protos.tms.v1 import common_pb2, lease_pb2, lease_pb2_grpc
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster.kubelet import kube
from tests.support import kubernetes_backend

LEASES, GROUPS = 1000, 300
IN_FLIGHT = 64
PATIENCE_S = 180.0
SETTLE_S, STEADY_S = 15.0, 20.0
USER = "root"
"""Nobody but the server calls as this user."""
_WORKER_BYTES, _LARGE_BYTES, _SMALL_BYTES = 1000 * 2**20, 300 * 2**20, 100 * 2**20
_LOOK_S = 0.5


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one run gave. `steady` are the server's calls within STEADY_S by verb and resource."""

    rate: float
    followed_rate: float
    accepted_s: float
    active_s: float
    whole_s: float
    groups: int
    writes: int
    all_writes: int
    cpu_s: float
    peak_bytes: int
    steady: dict[tuple[str, str], int]
    steady_cpu_s: float


def run(scratch: pathlib.Path, repository: pathlib.Path) -> list[report.Row]:
    """Rows; the server runs as a user of its own, so that its calls can be told from others'."""
    cluster = cluster_client.Cluster.current()
    kubeconfig = kubernetes_backend.kubeconfig_of(scratch, cluster.server, cluster.ca_certificate, cluster.token(USER))
    shape = server.Shape(
        kubeconfig=str(kubeconfig),
        most_workers=GROUPS,
        worker_bytes=_WORKER_BYTES,
        profile=f'node_selector = {{ "{instant.LABEL}" = "{instant.VALUE}" }}\ntolerations = [{{ operator = "Exists" }}]',
    )
    with instant.running(scratch), server.running(scratch, repository, shape) as control:
        return _rows(asyncio.run(_measured(scratch, control)))


async def _measured(scratch: pathlib.Path, control: server.Server) -> Figures:
    tokens = scratch / "tokens"
    tokens.mkdir()
    client = kube.Client.load(cluster_client.Cluster.current().kubeconfig)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(control.target))
        rates = await _rates(client)
        async with _beside(sidecars.Sidecars(client, server.NAMESPACE, control.target, tokens)):
            return await _figures(rates, control, client, lease_pb2_grpc.LeasesStub(channel))


async def _rates(client: kube.Client) -> tuple[float, float]:
    return await api_rate.measure(client, server.NAMESPACE), await api_rate.measure_followed(client, server.NAMESPACE)


async def _figures(
    rates: tuple[float, float], control: server.Server, client: kube.Client, leases: lease_pb2_grpc.LeasesAsyncStub
) -> Figures:
    own = calls.Calls(USER)
    own.begin()
    cpu_s, everybodys, begun = control.cpu_s(), calls.all_writes(), time.perf_counter()
    last = asyncio.create_task(_all_active(leases))
    await _create_all(leases)
    accepted_s = time.perf_counter() - begun
    groups = await last
    active_s = time.perf_counter() - begun
    await _all_services(client)
    whole_s = time.perf_counter() - begun
    made, all_made, used_s = own.counted(), calls.all_writes() - everybodys, control.cpu_s() - cpu_s
    await asyncio.sleep(SETTLE_S)  # noqa: TID251 - what controllers still say of the last pods is not the steady state
    own.begin()
    steady_from_s = control.cpu_s()
    await asyncio.sleep(STEADY_S)  # noqa: TID251 - the steady state is measured over a time
    return Figures(
        rate=rates[0],
        followed_rate=rates[1],
        accepted_s=accepted_s,
        active_s=active_s,
        whole_s=whole_s,
        groups=groups,
        writes=calls.writes(made),
        all_writes=all_made,
        cpu_s=used_s,
        peak_bytes=control.peak_bytes(),
        steady=dict(own.counted()),
        steady_cpu_s=control.cpu_s() - steady_from_s,
    )


async def _create_all(leases: lease_pb2_grpc.LeasesAsyncStub) -> None:
    numbers = iter(range(LEASES))

    async def work() -> None:
        for number in numbers:
            await leases.Create(_request(number))

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


async def _all_services(client: kube.Client) -> None:
    """Returns when every lease has both of its Services."""
    path = f"/api/v1/namespaces/{server.NAMESPACE}/services?labelSelector={server.OURS}"
    while len((await client.get(path, resourceVersion="0"))["items"]) < 2 * LEASES:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_LOOK_S)  # noqa: TID251 - asking without a pause would be load of its own


def _request(number: int) -> lease_pb2.CreateLeaseRequest:
    """Nine hundred large ones, three to a worker; the small ones fit beside them."""
    large = number % 10 != 0
    model = common_pb2.ModelReference(
        name=f"m-{number}", uri="model://bench/digits", declared_bytes=_LARGE_BYTES if large else _SMALL_BYTES
    )
    times = lease_pb2.LeaseTimes(renewal=lease_pb2.RENEWAL_MANUAL)
    return lease_pb2.CreateLeaseRequest(models=[model], pool=lease_pb2.PoolPlacement(), times=times)


async def _all_active(leases: lease_pb2_grpc.LeasesAsyncStub) -> int:
    """Returns when all are ACTIVE: the number of workers that they are on. SystemExit when some are not in time."""
    found: dict[str, str] = {}
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for update in leases.Watch(lease_pb2.WatchLeasesRequest()):
                if update.lease.state == lease_pb2.LEASE_STATE_ACTIVE:
                    found[update.lease.id] = update.lease.worker_group
                if len(found) == LEASES:
                    return len(set(found.values()))
    except TimeoutError:
        raise SystemExit(f"{len(found)} of {LEASES} leases were ACTIVE within {PATIENCE_S:.0f} s") from None
    raise SystemExit("the stream of leases ended")


@contextlib.asynccontextmanager
async def _beside(simulated: sidecars.Sidecars) -> AsyncIterator[None]:
    task = asyncio.create_task(simulated.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _rows(found: Figures) -> list[report.Row]:
    each, made_per_s = found.writes / LEASES, LEASES / found.active_s
    allowed, with_all = found.rate / each, found.rate * LEASES / found.all_writes
    followed = found.followed_rate * LEASES / found.all_writes
    fleet = f"{LEASES} leases on {found.groups} workers"
    return [
        report.Row(f"{fleet}: all ACTIVE", f"{found.active_s:.1f} s", f"{found.accepted_s:.1f} s to accept them"),
        report.Row("the same, headless Services too", f"{found.whole_s:.1f} s"),
        report.Row(
            "leases ACTIVE", f"{made_per_s:.0f} /s", f"{allowed:.0f} /s by TMS' writes alone", made_per_s / allowed
        ),
        report.Row(
            "the same", f"{made_per_s:.0f} /s", f"{with_all:.0f} /s by everybody's writes", made_per_s / with_all
        ),
        report.Row(
            "the same",
            f"{made_per_s:.0f} /s",
            f"{followed:.0f} /s by everybody's writes, taken as after plain Services",
            made_per_s / followed,
        ),
        report.Row("writes of TMS per lease", f"{each:.2f}", "target 8 with its worker group", each / 8),
        report.Row(
            "writes of everybody per lease",
            f"{found.all_writes / LEASES:.1f}",
            f"{found.rate:.0f} ConfigMaps/s alone, {found.followed_rate:.0f} writes/s around Services",
        ),
        report.Row(
            "server, processor time until then", f"{found.cpu_s:.1f} s", f"{found.cpu_s / LEASES * 1e3:.1f} ms a lease"
        ),
        report.Row("server, peak memory", f"{found.peak_bytes / 2**20:.0f} MiB"),
        report.Row("calls in steady state", _steady(found.steady), "watches only"),
        report.Row("server, processor time in steady state", f"{found.steady_cpu_s / STEADY_S:.1%} of a core"),
    ]


def _steady(found: dict[tuple[str, str], int]) -> str:
    per_minute = 60 / STEADY_S
    told = (f"{verb} {what}: {number * per_minute:.0f}" for (verb, what), number in sorted(found.items()))
    return f"{', '.join(told) or '0'} /min"
