"""The real server in this process: real database, real sockets, simulated workers, a clock that is moved by hand.

``async with running(tmp_path) as server`` for tests on the loop; ``with in_thread(tmp_path) as server`` for clients that
block. Both leave nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import pathlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import grpc

from protos.tms.v1 import common_pb2, lease_pb2, lease_pb2_grpc, pool_pb2, pool_pb2_grpc
from tests.support import sidecars as sidecars_module
from tms_server import app as app_module
from tms_server import settings as settings_module
from tms_server.model import errors, ids, lease, source
from tms_server.ports import backend as backend_module
from tms_server.ports import resolver
from tms_server.testing import backend as fake
from tms_server.testing import clock as fake_clock

PATIENCE_S = 30.0
T = TypeVar("T")


class Shelf:
    """Model repositories in memory: every model:// URI below ``model://shelf/`` exists unless it was taken away."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.frameworks: dict[str, source.Framework] = {}
        self.refusals: dict[str, errors.TmsError] = {}
        self.silent = False
        self._heard = asyncio.Event()

    async def resolve(self, reference: lease.ModelReference) -> source.ModelSource:
        if self.silent:
            raise errors.Unavailable("the shelf does not answer")
        if reference.uri in self.refusals:
            raise self.refusals[reference.uri]
        if not reference.uri.startswith("model://shelf/"):
            raise errors.NotFound(f"no model at {reference.uri}")
        name = reference.uri.removeprefix("model://")
        size = self.sizes.get(reference.uri, 100)
        return source.ModelSource(
            uri=f"file:///{name}",
            framework=reference.framework or self.frameworks.get(reference.uri, source.Framework.ONNXRUNTIME),
            files=(source.SourceFile(path="1/model.onnx", size_bytes=size, version=name),),
        )

    def access(self, uri: str) -> resolver.S3Access | None:
        return None


class Machine:
    """What outlives a server: the folder of its state, the workers, the clock, the model repository."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.clock = fake_clock.FakeClock()
        self.world = fake.FakeWorld()
        self.shelf = Shelf()

    def settings(self, **flags: Any) -> settings_module.Settings:
        """Settings with free ports; `flags` are nested as in the tree."""
        given: dict[str, Any] = {
            "data_dir": self.folder / "state",
            "api": {"port": 0, "stop_grace_s": 1.0},
            "metrics": {"enabled": False},
        }
        for section, values in flags.items():
            given[section] = {**given.get(section, {}), **values} if isinstance(values, dict) else values
        return settings_module.load(given, None)


class Running:
    """A server that serves, with clients of its services and the sidecars of its workers."""

    def __init__(
        self, machine: Machine, app: app_module.App, bound: app_module.Bound, backend: fake.FakeBackend
    ) -> None:
        self.machine = machine
        self.clock = machine.clock
        self.shelf = machine.shelf
        self.app = app
        self.backend = backend
        self.address = bound.api
        self.bound = bound
        self.channel: grpc.aio.Channel = grpc.aio.insecure_channel(bound.api)
        self.sidecars = sidecars_module.Sidecars(backend, self.dial, machine.clock)

    @property
    def leases(self) -> lease_pb2_grpc.LeasesAsyncStub:
        return lease_pb2_grpc.LeasesStub(self.channel)

    @property
    def names(self) -> lease_pb2_grpc.LeaseNamesAsyncStub:
        return lease_pb2_grpc.LeaseNamesStub(self.channel)

    @property
    def pools(self) -> pool_pb2_grpc.PoolsAsyncStub:
        return pool_pb2_grpc.PoolsStub(self.channel)

    @property
    def workers(self) -> pool_pb2_grpc.WorkersAsyncStub:
        return pool_pb2_grpc.WorkersStub(self.channel)

    @property
    def images(self) -> pool_pb2_grpc.ImagesAsyncStub:
        return pool_pb2_grpc.ImagesStub(self.channel)

    def dial(self) -> grpc.aio.Channel:
        """A channel of its own to the server."""
        return grpc.aio.insecure_channel(self.address)

    def advance(self, **span: float) -> None:
        """Moves the clock."""
        self.clock.advance(dt.timedelta(**span))

    async def create(self, *models: common_pb2.ModelReference, **fields: Any) -> lease_pb2.Lease:
        """Creates a lease; without models, of the model ``one``."""
        return await self.leases.Create(lease_pb2.CreateLeaseRequest(models=models or (model("one"),), **fields))

    async def get(self, lease_id: str) -> lease_pb2.Lease:
        return await self.leases.Get(lease_pb2.GetLeaseRequest(lease=lease_id))

    async def release(self, lease_id: str) -> lease_pb2.Lease:
        return await self.leases.Release(lease_pb2.ReleaseLeaseRequest(lease=lease_id))

    async def events(self, lease_id: str) -> list[str]:
        """Types of a lease's history."""
        found = await self.leases.ListEvents(lease_pb2.ListEventsRequest(lease=lease_id))
        return [each.type for each in found.events]

    async def until(self, lease_id: str, holds: Callable[[lease_pb2.Lease], bool]) -> lease_pb2.Lease:
        """Follows a lease until something holds of it; fails with its last state when it ends or time is up before."""
        last: lease_pb2.Lease | None = None
        request = lease_pb2.WatchLeasesRequest(leases=[lease_id])
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for update in self.leases.Watch(request):
                    last = update.lease
                    if holds(last):
                        return last
        except TimeoutError:
            raise AssertionError(f"time is up; last seen: {last}") from None
        raise AssertionError(f"the watch ended; last seen: {last}")

    async def until_read(self, lease_id: str, holds: Callable[[lease_pb2.Lease], bool]) -> lease_pb2.Lease:
        """Reads a lease until something holds of it, for what brings no update, such as use."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds(read := await self.get(lease_id)):
                pass
        return read

    async def until_state(self, lease_id: str, state: lease_pb2.LeaseState.ValueType) -> lease_pb2.Lease:
        return await self.until(lease_id, lambda found: found.state == state)

    async def active(self, *models: common_pb2.ModelReference, **fields: Any) -> lease_pb2.Lease:
        """Creates a lease and waits until it serves."""
        made = await self.create(*models, **fields)
        return await self.until_state(made.id, lease_pb2.LEASE_STATE_ACTIVE)

    async def idle(self) -> None:
        """Returns once no worker runs."""
        async with asyncio.timeout(PATIENCE_S):
            steps = self.backend.watch()
            while self.backend.world.groups:
                await anext(steps)

    async def worker(self, lease_id: str) -> pool_pb2.Worker:
        """The worker that holds a lease."""
        listed = await self.workers.List(pool_pb2.ListWorkersRequest())
        return next(each for each in listed.workers if lease_id in each.lease_ids)


@contextlib.asynccontextmanager
async def running(
    place: pathlib.Path | Machine, *, with_sidecars: bool = True, routes: bool = False, **flags: Any
) -> AsyncIterator[Running]:
    """A server for the length of a block. Give a `Machine` instead of a folder to start a second one in its place.

    With `routes` its backend leads clients to workers and has replicas.
    """
    machine = place if isinstance(place, Machine) else Machine(place)
    backend = fake.FakeBackend(machine.world, routes=routes)

    async def open_backend(
        settings: settings_module.Settings, installation: ids.InstallationId, dial: str
    ) -> backend_module.Backend:
        return backend

    outside = app_module.Outside(clock=machine.clock, open_backend=open_backend, resolver=machine.shelf)
    app = app_module.build(machine.settings(**flags), outside)
    serving = asyncio.create_task(app.run())
    following: asyncio.Task[None] | None = None
    try:
        server = Running(machine, app, await _bound(app, serving), backend)
        if with_sidecars:
            following = asyncio.create_task(server.sidecars.run())
        yield server
        await server.channel.close()
    finally:
        app.stop()
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await serving


@contextlib.contextmanager
def in_thread(place: pathlib.Path, **flags: Any) -> Iterator[Threaded]:
    """A server on an event loop of its own, in a thread, for clients that block."""
    handle = Threaded()
    thread = threading.Thread(target=handle.serve, args=(place, flags), name="server under test")
    thread.start()
    try:
        handle.wait()
        yield handle
    finally:
        handle.close()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


class Threaded:
    """A server in another thread. `call` runs a coroutine function over it there; `advance` moves its clock."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._server: Running | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Event | None = None
        self._failure: BaseException | None = None

    @property
    def address(self) -> str:
        assert self._server is not None
        return self._server.address

    def call(self, work: Callable[[Running], Coroutine[Any, Any, T]]) -> T:
        """What `work` answers; it runs on the server's loop."""
        assert self._loop is not None
        assert self._server is not None
        return asyncio.run_coroutine_threadsafe(work(self._server), self._loop).result(PATIENCE_S)

    def advance(self, **span: float) -> None:
        """Moves the server's clock."""

        async def work(server: Running) -> None:
            server.advance(**span)

        self.call(work)

    def serve(self, place: pathlib.Path, flags: dict[str, Any]) -> None:
        """Body of the thread."""
        try:
            asyncio.run(self._serve(place, flags))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self, place: pathlib.Path, flags: dict[str, Any]) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        async with running(place, **flags) as server:
            self._server = server
            self._ready.set()
            await self._done.wait()

    def wait(self) -> None:
        """Returns once the server serves."""
        assert self._ready.wait(PATIENCE_S)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Asks the server to end."""
        if self._loop is not None and self._done is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._done.set)


def model(name: str, uri: str = "", **fields: Any) -> common_pb2.ModelReference:
    """A reference to a model on the shelf."""
    return common_pb2.ModelReference(name=name, uri=uri or f"model://shelf/{name}", **fields)


async def _bound(app: app_module.App, serving: asyncio.Task[None]) -> app_module.Bound:
    """Where the server listens, or what kept it from starting."""
    bound = asyncio.ensure_future(app.bound())
    await asyncio.wait((bound, serving), return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        bound.cancel()
        serving.result()
    return await bound
