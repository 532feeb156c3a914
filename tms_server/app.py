"""The composition root: the only place that names concrete classes. Builds the server, runs it, winds it down.

Every task belongs to one group; a task that dies takes the server with it, for a server that half works is worse than one
that is started anew. Winding down ends streams first, gives calls in flight their time, and stores what is only in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import json
import os
import pathlib
import secrets
from collections.abc import Awaitable, Callable, Mapping

import structlog

from tms_server import clock as clock_module
from tms_server import cluster, wiring
from tms_server import loops as loops_module
from tms_server import settings as settings_module
from tms_server.api import server as server_module
from tms_server.backends.kubernetes import backend as pods
from tms_server.backends.kubernetes import connect
from tms_server.backends.processes import backend as processes
from tms_server.metrics_api import kube
from tms_server.model import errors, ids, pool
from tms_server.observability import listener
from tms_server.observability import metrics as metrics_module
from tms_server.ports import backend as backend_module
from tms_server.ports import resolver as resolver_module
from tms_server.ports import store as store_module
from tms_server.reconcilers import heartbeat
from tms_server.repositories import resolver as repositories
from tms_server.services import agents, create, images, leases, names, parts, pools, tunnels, watch, workers
from tms_server.store import store as sql
from tms_server.world import live, signal

log = structlog.get_logger(__name__)


class RandomIds:
    """Ids and secrets from the operating system."""

    def lease(self) -> ids.LeaseId:
        return ids.LeaseId(f"l-{secrets.token_hex(8)}")

    def group(self) -> ids.GroupId:
        return ids.GroupId(f"w-{secrets.token_hex(8)}")

    def request(self) -> str:
        return f"r-{secrets.token_hex(16)}"

    def token(self) -> str:
        return secrets.token_urlsafe(32)

    def installation(self) -> ids.InstallationId:
        return ids.InstallationId(f"i-{secrets.token_hex(8)}")


OpenBackend = Callable[[settings_module.Settings, ids.InstallationId, str], Awaitable[backend_module.Backend]]
"""Opens the backend of an installation whose sidecars dial the given HOST:PORT."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What the server stands on and tests replace: time, the backend, the model repositories."""

    clock: clock_module.Clock
    open_backend: OpenBackend
    resolver: resolver_module.Resolver


def outside(settings: settings_module.Settings) -> Outside:
    """The real ones."""
    clock = clock_module.SystemClock()

    async def open_backend(
        chosen: settings_module.Settings, installation: ids.InstallationId, dial: str
    ) -> backend_module.Backend:
        if chosen.backend == "kubernetes":
            shapes = wiring.pod_options(chosen, installation, dial, cluster.own_namespace())
            return await pods.KubernetesBackend.open(shapes, wiring.connection(chosen), clock)
        return await processes.ProcessBackend.open(wiring.process_options(chosen, installation, dial), clock)

    declared = [wiring.repository(name, each) for name, each in settings.repositories.items()]
    return Outside(clock=clock, open_backend=open_backend, resolver=repositories.RepositoryResolver(declared))


def build(settings: settings_module.Settings, replaced: Outside | None = None) -> App:
    """The server, not started."""
    return App(settings, replaced or outside(settings))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Where a server listens, as HOST:PORT; `metrics` is empty without that listener."""

    api: str
    metrics: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What a server that serves has opened."""

    store: store_module.Store
    server: server_module.Server
    backend: backend_module.Backend
    around: cluster.Cluster | None
    bound: Bound


class App:
    """One server. `run` serves until `stop` is called; `bound` answers once it serves."""

    def __init__(self, settings: settings_module.Settings, outside_: Outside) -> None:
        self._settings = settings
        self._outside = outside_
        self._stopping = asyncio.Event()
        self._bound: asyncio.Future[Bound] = asyncio.get_running_loop().create_future()
        self._metrics = metrics_module.Metrics()

    def stop(self) -> None:
        """Asks for a graceful end; safe from a signal handler of the loop."""
        self._stopping.set()

    async def bound(self) -> Bound:
        """Returns once the server answers."""
        return await asyncio.shield(self._bound)

    async def run(self) -> None:
        """Serves. Raises what kept the server from starting or made it die."""
        settings = self._settings
        async with contextlib.AsyncExitStack() as stack:
            options = sql.Options(migrate=settings.migrate_at_start)
            store = await sql.SqlStore.open(settings.database, self._outside.clock, RandomIds().installation, options)
            stack.push_async_callback(store.close)
            around = await self._open_cluster(stack)
            tls = around.shown if around is not None and settings.tls.managed else wiring.tls(settings)
            server = server_module.Server(settings.api.address, settings.api.port, tls, self._metrics)
            stack.push_async_callback(server.stop, 0.0)
            installation = await store.read(lambda reader: reader.installation())
            dial = f"{settings.dial_host}:{server.port}"
            backend = await self._outside.open_backend(settings, installation.id, dial)
            stack.push_async_callback(backend.close)
            metrics_address = self._listen(stack)
            opened = _Opened(
                store=store,
                server=server,
                backend=backend,
                around=around,
                bound=Bound(api=server.address, metrics=metrics_address),
            )
            await self._serve(opened)

    async def _open_cluster(self, stack: contextlib.AsyncExitStack) -> cluster.Cluster | None:
        if self._settings.backend != "kubernetes":
            return None
        api = kube.Kube(await connect.connect(wiring.connection(self._settings)))
        opened = await cluster.Cluster.open(self._settings, api, self._outside.clock)
        stack.push_async_callback(opened.close)
        return opened

    async def _serve(self, opened: _Opened) -> None:
        work = self._parts(opened, await self._recover(opened.store, opened.backend))
        use_cases = _use_cases(work, dt.timedelta(seconds=self._settings.timing.report_interval_s))
        if opened.around is not None:
            await opened.around.serve(work)
        async with asyncio.TaskGroup() as tasks:
            loops = loops_module.Loops(self._settings, work, use_cases.agents, tasks)
            stop_listening = opened.store.subscribe(work.changed.notify)
            running = loops.start(opened.around.passes() if opened.around is not None else ())
            await opened.server.start(use_cases)
            self._announce(opened.bound)
            await self._stopping.wait()
            stop_listening()
            await self._wind_down(opened.server, work, use_cases.agents)
            for task in (*running, *loops.spawned):
                task.cancel()
        with contextlib.suppress(errors.TmsError):
            await loops.heartbeat()
            await loops.resign()
        log.info("server.stopped")

    def _parts(self, opened: _Opened, known: live.Live) -> parts.Parts:
        store, backend = opened.store, opened.backend
        return parts.Parts(
            store=store,
            backend=backend,
            resolver=self._outside.resolver,
            clock=self._outside.clock,
            ids=RandomIds(),
            live=known,
            metrics=self._metrics,
            autoscaled=lambda: opened.around is None or opened.around.autoscales,
            changed=signal.Signal(),
            resolve_bound=dt.timedelta(seconds=self._settings.timing.resolve_bound_s),
            lost_after=dt.timedelta(seconds=self._settings.timing.lost_after_s),
            times=wiring.times(self._settings),
            declared=frozenset(wiring.pools(self._settings)),
            images=tuple(filter(None, (self._settings.kubernetes.worker_image, *self._settings.images))),
        )

    async def _recover(self, store: store_module.Store, backend: backend_module.Backend) -> live.Live:
        """Credits the outage and takes up what an earlier server knew, before anything can expire."""
        now = self._outside.clock.now()
        await heartbeat.credit_outage(store, now)
        kept = wiring.pools(self._settings)
        await store.write(lambda unit: _keep_pools(unit, kept, backend, now))
        known = live.Live()
        known.restore(await store.read(lambda reader: reader.reports()), now)
        return known

    def _listen(self, stack: contextlib.AsyncExitStack) -> str:
        chosen, tls = self._settings.metrics, self._settings.tls
        if not chosen.enabled:
            return ""
        at = listener.Address(
            chosen.address, chosen.port, certificate=tls.certificate, key=tls.key, client_ca=tls.client_ca
        )
        return stack.enter_context(listener.serve(self._metrics.registry, at, self._serves))

    def _serves(self) -> bool:
        return self._bound.done() and not self._stopping.is_set()

    def _announce(self, bound: Bound) -> None:
        log.info("server.ready", api=bound.api, metrics=bound.metrics, data_dir=str(self._settings.data_dir))
        if self._settings.ready_file is not None:
            _write_atomically(self._settings.ready_file, {**dataclasses.asdict(bound), "pid": os.getpid()})
        self._bound.set_result(bound)

    async def _wind_down(self, server: server_module.Server, work: parts.Parts, hub: agents.Agents) -> None:
        log.info("server.stopping")
        if self._settings.ready_file is not None:
            self._settings.ready_file.unlink(missing_ok=True)
        work.changed.close()
        work.live.changed.close()
        hub.close()
        await server.stop(self._settings.api.stop_grace_s)


def _use_cases(work: parts.Parts, report_interval: dt.timedelta) -> server_module.UseCases:
    creator = create.Creator(parts=work)
    return server_module.UseCases(
        creator=creator,
        leases=leases.Leases(parts=work),
        watcher=watch.Watcher(work, creator),
        names=names.Names(parts=work),
        tunnels=tunnels.Tunnels(work),
        pools=pools.Pools(parts=work),
        workers=workers.Workers(parts=work),
        images=images.Images(parts=work),
        agents=agents.Agents(work, report_interval),
    )


def _keep_pools(
    unit: store_module.UnitOfWork,
    kept: Mapping[pool.Key, pool.PoolSpec],
    backend: backend_module.Backend,
    now: dt.datetime,
) -> None:
    """The administrator's settings decide about these pools, whatever was stored."""
    for (namespace, name), spec in kept.items():
        stored = unit.get_pool(namespace, name)
        if stored is None:
            unit.put_pool(pool.Pool(namespace=namespace, name=name, spec=spec, created_at=now))
        elif stored.spec != spec or stored.deleted_at is not None:
            wanted = dataclasses.replace(stored, spec=spec, deleted_at=None)
            unit.put_pool(_as_far_as_possible(unit, stored, wanted, backend))


def _as_far_as_possible(
    unit: store_module.UnitOfWork, stored: pool.Pool, wanted: pool.Pool, backend: backend_module.Backend
) -> pool.Pool:
    """Workers that run are not brought to a shape that cannot hold what is booked on them."""
    if not backend.scales or stored.spec.worker == wanted.spec.worker:
        return wanted
    try:
        pools.bound_bookings(unit, wanted, backend.capacity_bytes)
    except errors.FailedPrecondition as refused:
        log.warning("pool.keeps_its_workers", pool=wanted.name, namespace=wanted.namespace, why=str(refused))
        return dataclasses.replace(wanted, spec=dataclasses.replace(wanted.spec, worker=stored.spec.worker))
    return wanted


def _write_atomically(path: pathlib.Path, value: dict[str, object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value) + "\n")
    partial.replace(path)
