"""What every backend owes its callers, on each implementation."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import pathlib
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Protocol

import pytest

from tests.support import kubernetes_api
from tms_server import clock
from tms_server.backends.kubernetes import backend as kubernetes
from tms_server.backends.kubernetes import connect, names
from tms_server.backends.kubernetes import options as kubernetes_options
from tms_server.backends.processes import backend as processes
from tms_server.backends.processes import layout, proc
from tms_server.backends.processes import options as process_options
from tms_server.fleet import desired
from tms_server.model import errors, ids, resources
from tms_server.ports import backend
from tms_server.testing import backend as fake

BOUND_S = 30
GROUP = ids.GroupId("g-1")


class Harness(Protocol):
    """One machine on which backends of consecutive server runs live."""

    async def open(self) -> backend.Backend: ...

    @property
    def refused(self) -> Mapping[str, resources.WorkerSpec]:
        """Workers that can never run there, by the field that is to blame."""
        ...

    async def kill_worker(self, group_id: ids.GroupId) -> None: ...

    async def occupy(self, owner: str) -> None:
        """The address of an owner belongs to somebody else."""
        ...

    async def close(self) -> None: ...


REFUSED = {
    "command": resources.WorkerSpec(command="rm -rf /"),
    "gpus": resources.WorkerSpec(resources=resources.Resources(gpus=1000)),
}


class FakeHarness:
    refused = REFUSED

    def __init__(self, *, routes: bool = False) -> None:
        self._world = fake.FakeWorld()
        self._routes = routes
        self._last = fake.FakeBackend(self._world, routes=routes)

    async def open(self) -> backend.Backend:
        self._last = fake.FakeBackend(self._world, routes=self._routes)
        return self._last

    async def kill_worker(self, group_id: ids.GroupId) -> None:
        self._last.kill(group_id)

    async def occupy(self, owner: str) -> None:
        self._world.strangers.add(owner)

    async def close(self) -> None:
        self._world.groups.clear()


class ProcessHarness:
    """Small real programs stand where worker and sidecar would."""

    refused: Mapping[str, resources.WorkerSpec] = {**REFUSED, "image": resources.WorkerSpec(image="registry/image:1")}

    def __init__(self, directory: pathlib.Path) -> None:
        self._options = process_options.Options(
            data_dir=directory,
            installation_id=ids.InstallationId(f"contract {directory}"),
            server="127.0.0.1:1",
            commands={"tms-worker": ("/bin/sh", "-c", "echo worker {http_port}; exec sleep 1000")},
            sidecar_command=("/bin/sh", "-c", "echo sidecar {worker_id}; exec sleep 1000"),
            backoff=process_options.Backoff(first=dt.timedelta(milliseconds=10)),
        )

    async def open(self) -> backend.Backend:
        return await processes.ProcessBackend.open(self._options, clock.SystemClock())

    async def occupy(self, owner: str) -> None:
        raise AssertionError("its sidecars listen themselves")

    async def kill_worker(self, group_id: ids.GroupId) -> None:
        note = layout.read_note(self._options.data_dir / "groups" / group_id, "worker")
        assert note is not None
        process = proc.find(note.identity)
        assert process is not None
        process.send(signal.SIGKILL)
        process.forget()

    async def close(self) -> None:
        """A failed test may leave groups; no process of theirs outlives it."""
        opened = await self.open()
        for observed in await opened.observe():
            await opened.retire(observed.group_id)
        await opened.close()


class KubernetesHarness:
    """The HTTP fake of the API; `tests/kubernetes` runs the same suite on a real one."""

    refused: Mapping[str, resources.WorkerSpec] = {
        **REFUSED,
        "image": resources.WorkerSpec(image="not an image"),
        "profile": resources.WorkerSpec(profile="unknown"),
    }

    def __init__(self, server: kubernetes_api.Server) -> None:
        self._server = server
        self._options = kubernetes_options.Options(
            namespace="tms",
            installation_id=ids.InstallationId("i-contract"),
            dial="tms-server.tms.svc:30345",
            sidecar_image="tms/sidecar:1",
            programs={"tms-worker": kubernetes_options.Program(image="tms/worker:1")},
            settle_s=0.05,
        )

    async def open(self) -> backend.Backend:
        connection = connect.Connection(kubeconfig=self._server.kubeconfig)
        return await kubernetes.KubernetesBackend.open(self._options, connection, clock.SystemClock())

    async def kill_worker(self, group_id: ids.GroupId) -> None:
        self._server.cluster.kill_worker(group_id)

    async def occupy(self, owner: str) -> None:
        metadata = {"name": names.service_of(owner), "namespace": "tms"}
        self._server.cluster.put("services", {"metadata": metadata, "spec": {"selector": {"app": "theirs"}}})

    async def close(self) -> None:
        await self._server.stop()


@pytest.fixture(params=["fake", "routing fake", "processes", "kubernetes"])
async def harness(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> AsyncIterator[Harness]:
    made: Harness
    match request.param:
        case "fake" | "routing fake":
            made = FakeHarness(routes=request.param != "fake")
        case "processes":
            made = ProcessHarness(tmp_path)
        case _:
            server = kubernetes_api.Server(kubernetes_api.Cluster(), tmp_path)
            await server.start()
            made = KubernetesHarness(server)
    yield made
    await made.close()


@pytest.fixture
async def runs(harness: Harness) -> AsyncIterator[backend.Backend]:
    opened = await harness.open()
    yield opened
    for observed in await opened.observe():
        await opened.retire(observed.group_id)
    await opened.close()


def spec(
    runs: backend.Backend, group_id: str = GROUP, *, command: str = "", taken: Collection[resources.Endpoint] = ()
) -> backend.LaunchSpec:
    return backend.LaunchSpec(
        group_id=ids.GroupId(group_id),
        namespace=ids.DEFAULT_NAMESPACE,
        worker=resources.WorkerSpec(command=command),
        endpoint=runs.publish(f"group/{group_id}", taken),
        token="a secret",
    )


async def seen(runs: backend.Backend) -> dict[str, backend.Observed]:
    return {each.group_id: each for each in await runs.observe()}


async def until(runs: backend.Backend, reached: Callable[[], Awaitable[bool]]) -> None:
    """Waits on the backend's own watch, which must tell of everything `observe` says."""
    steps = runs.watch()
    async with asyncio.timeout(BOUND_S):
        while not await reached():
            await anext(steps)


async def running(runs: backend.Backend, restarts: int = 0) -> None:
    async def reached() -> bool:
        group = (await seen(runs)).get(GROUP)
        return group is not None and group.phase is backend.Phase.RUNNING and group.restarts >= restarts

    await until(runs, reached)


async def a_worker(runs: backend.Backend) -> ids.WorkerId:
    """A group runs; its one worker."""
    await runs.launch(spec(runs))
    await until(runs, lambda: has_replicas(runs, 1))
    (replica,) = (await seen(runs))[GROUP].replicas
    return ids.WorkerId(GROUP, replica.id)


async def has_replicas(runs: backend.Backend, count: int) -> bool:
    replicas = (await seen(runs))[GROUP].replicas
    return len(replicas) == count and all(each.phase is backend.Phase.RUNNING for each in replicas)


async def is_routed(runs: backend.Backend, worker: ids.WorkerId, leases: frozenset[ids.LeaseId]) -> bool:
    return runs.routed(worker) == leases


def route(lease_id: ids.LeaseId, workers: Collection[ids.WorkerId], *names_: str) -> backend.Route:
    bound = (desired.name_owner(ids.DEFAULT_NAMESPACE, ids.LeaseName(each)) for each in names_)
    return backend.Route(lease_id=lease_id, owners=(desired.lease_owner(lease_id), *bound), workers=frozenset(workers))


async def test_nothing_runs_at_first(runs: backend.Backend) -> None:
    assert await runs.observe() == ()


async def test_a_launched_group_runs(runs: backend.Backend) -> None:
    await runs.launch(spec(runs))
    await running(runs)
    assert (await seen(runs))[GROUP].restarts == 0


async def test_launching_twice_is_launching_once(runs: backend.Backend) -> None:
    wanted = spec(runs)
    await asyncio.gather(runs.launch(wanted), runs.launch(wanted))
    await running(runs)
    await runs.launch(wanted)
    assert [each.group_id for each in await runs.observe()] == [GROUP]
    assert (await seen(runs))[GROUP].restarts == 0


async def test_a_retired_group_is_gone(runs: backend.Backend) -> None:
    await runs.launch(spec(runs))
    await running(runs)
    await runs.retire(GROUP)
    assert await runs.observe() == ()


async def test_retiring_twice_or_what_never_was_is_a_success(runs: backend.Backend) -> None:
    await runs.launch(spec(runs))
    await asyncio.gather(runs.retire(GROUP), runs.retire(GROUP))
    await runs.retire(GROUP)
    await runs.retire(ids.GroupId("g-unknown"))
    assert await runs.observe() == ()


async def test_a_retired_id_may_be_launched_again(runs: backend.Backend) -> None:
    wanted = spec(runs)
    await runs.launch(wanted)
    await asyncio.gather(runs.retire(GROUP), runs.launch(wanted))
    await runs.launch(wanted)
    await running(runs)


async def test_groups_do_not_disturb_each_other(runs: backend.Backend) -> None:
    first = spec(runs)
    await runs.launch(first)
    await runs.launch(spec(runs, "g-2", taken=[first.endpoint]))
    await runs.retire(ids.GroupId("g-2"))
    await running(runs)


async def test_a_killed_worker_comes_back(harness: Harness, runs: backend.Backend) -> None:
    await runs.launch(spec(runs))
    await running(runs)
    await harness.kill_worker(GROUP)
    await running(runs, restarts=1)


async def test_groups_of_an_earlier_run_are_observed_and_can_be_retired(harness: Harness) -> None:
    before = await harness.open()
    await before.launch(spec(before))
    await running(before)
    await before.close()
    after = await harness.open()
    assert set(await seen(after)) == {GROUP}
    await running(after)
    assert (await seen(after))[GROUP].restarts == 0
    await after.launch(spec(after))
    await after.retire(GROUP)
    assert await after.observe() == ()
    await after.close()


async def test_what_can_never_run_is_refused_by_the_name_of_its_field(harness: Harness, runs: backend.Backend) -> None:
    for field, worker in harness.refused.items():
        assert field in (runs.refuse(worker) or "")
    assert runs.refuse(resources.WorkerSpec()) is None


async def test_what_is_refused_is_not_launched_either(runs: backend.Backend) -> None:
    with pytest.raises(errors.FailedPrecondition, match="command"):
        await runs.launch(spec(runs, command="rm -rf /"))
    assert await runs.observe() == ()


async def test_capacity_follows_what_was_asked_for(runs: backend.Backend) -> None:
    default = runs.capacity_bytes(resources.WorkerSpec())
    asked = runs.capacity_bytes(resources.WorkerSpec(resources=resources.Resources(memory_bytes=2**40)))
    more = runs.capacity_bytes(resources.WorkerSpec(resources=resources.Resources(memory_bytes=2**40 + 1)))
    assert default > 0
    assert asked <= 2**40
    assert more == asked + 1


async def test_addresses_are_stable_and_none_of_those_taken(runs: backend.Backend) -> None:
    taken: list[resources.Endpoint] = []
    for number in range(20):
        endpoint = runs.publish(f"lease/l-{number}", taken)
        assert endpoint == runs.publish(f"lease/l-{number}", taken)
        assert _sockets(endpoint).isdisjoint(set().union(*map(_sockets, taken)))
        assert len(_sockets(endpoint)) == 3
        taken.append(endpoint)


async def test_the_last_lines_of_both_programs_are_read(runs: backend.Backend) -> None:
    await runs.launch(spec(runs))
    sources: set[str] = set()
    async with asyncio.timeout(BOUND_S), _closing(runs.logs(GROUP, 5, follow=True)) as lines:
        async for line in lines:
            assert line.group_id == GROUP
            sources.add(line.source)
            if sources == {"worker", "sidecar"}:
                break
    tail = [line async for line in runs.logs(GROUP, 1, follow=False)]
    assert sorted(line.source for line in tail) == ["sidecar", "worker"]
    assert [line async for line in runs.logs(GROUP, 0, follow=False)] == []


async def test_following_ends_with_the_group(runs: backend.Backend) -> None:
    await runs.launch(spec(runs))
    await running(runs)
    lines = runs.logs(GROUP, 5, follow=True)
    async with asyncio.timeout(BOUND_S):
        await anext(lines)
        await runs.retire(GROUP)
        assert all(line.group_id == GROUP for line in [line async for line in lines])


async def test_logs_of_an_unknown_group_are_not_found(runs: backend.Backend) -> None:
    with pytest.raises(errors.NotFound, match="g-unknown"):
        await anext(runs.logs(ids.GroupId("g-unknown"), 5, follow=False))


async def test_what_was_launched_does_not_differ(runs: backend.Backend) -> None:
    wanted = spec(runs)
    assert not runs.differs(wanted)
    await runs.launch(wanted)
    assert not runs.differs(wanted)
    await running(runs)
    assert not runs.differs(wanted)


async def test_a_group_is_brought_to_another_size(runs: backend.Backend) -> None:
    wanted = spec(runs)
    await runs.launch(wanted)
    await running(runs)
    if not runs.scales:
        return
    more = dataclasses.replace(wanted, replicas=3)
    assert runs.differs(more)
    await runs.launch(more)
    assert not runs.differs(more)
    await until(runs, lambda: has_replicas(runs, 3))
    await runs.launch(wanted)
    await until(runs, lambda: has_replicas(runs, 1))


async def test_clients_are_led_to_the_workers_of_a_route_until_it_is_gone(runs: backend.Backend) -> None:
    worker = await a_worker(runs)
    lease_id = ids.LeaseId("l-1")
    assert await runs.route([route(lease_id, [worker])]) == {}
    assert runs.routed(worker) == (frozenset({lease_id}) if runs.routes else frozenset())
    assert await runs.route([]) == {}
    await until(runs, lambda: is_routed(runs, worker, frozenset()))


async def test_a_name_moves_to_another_lease(runs: backend.Backend) -> None:
    worker = await a_worker(runs)
    first, second = ids.LeaseId("l-1"), ids.LeaseId("l-2")
    await runs.route([route(first, [worker], "a"), route(second, [worker])])
    await runs.route([route(first, []), route(second, [worker], "a")])
    if runs.routes:
        await until(runs, lambda: is_routed(runs, worker, frozenset({second})))


async def test_routes_outlive_the_server(harness: Harness) -> None:
    before = await harness.open()
    worker = await a_worker(before)
    wanted = [route(ids.LeaseId("l-1"), [worker], "a")]
    await before.route(wanted)
    routed = before.routed(worker)
    await before.close()
    after = await harness.open()
    await running(after)
    assert after.routed(worker) == routed
    await after.route([])
    await after.retire(GROUP)
    await after.close()


async def test_an_address_of_somebody_else_is_left_alone_and_the_others_are_made(
    harness: Harness, runs: backend.Backend
) -> None:
    if not runs.routes:
        return
    worker = await a_worker(runs)
    lease_id = ids.LeaseId("l-1")
    await harness.occupy(desired.name_owner(ids.DEFAULT_NAMESPACE, ids.LeaseName("theirs")))
    troubles = await runs.route([route(lease_id, [worker], "theirs", "ours")])
    assert {owner: trouble.reason for owner, trouble in troubles.items()} == {"name/default/theirs": "NameTaken"}
    assert runs.routed(worker) == {lease_id}
    await runs.route([])


async def test_a_name_without_address_is_refused(runs: backend.Backend) -> None:
    assert runs.refuse_name(ids.DEFAULT_NAMESPACE, ids.LeaseName("digits")) is None
    if runs.routes:
        assert runs.refuse_name(ids.Namespace("a" * 40), ids.LeaseName("b" * 40))


async def test_closing_ends_the_watches(harness: Harness) -> None:
    opened = await harness.open()
    steps = opened.watch()
    await opened.close()
    async with asyncio.timeout(BOUND_S):
        assert [step async for step in steps] == []


def _sockets(endpoint: resources.Endpoint) -> set[tuple[str, int]]:
    return {(endpoint.host, port) for port in (endpoint.http_port, endpoint.grpc_port, endpoint.metrics_port)}


@contextlib.asynccontextmanager
async def _closing(lines: AsyncIterator[backend.LogLine]) -> AsyncIterator[AsyncIterator[backend.LogLine]]:
    """Closes what the port promises as an iterator only, where it is a generator."""
    try:
        yield lines
    finally:
        if isinstance(lines, AsyncGenerator):
            await lines.aclose()
