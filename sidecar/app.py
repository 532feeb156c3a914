"""Puts the sidecar together and runs it until it is told to stop or not wanted any more.

The one place that names concrete parts and that makes ids. Exit codes: 0 on SIGTERM or SIGINT, 1 on a defect, 3 when the
server does not want this worker.
"""

from __future__ import annotations

import asyncio
import secrets
import signal

import structlog

from sidecar import (
    access,
    agent,
    control,
    departure,
    endpoints,
    errors,
    pod,
    probes,
    remember,
    runtime,
    settings,
    state,
    usage,
)
from sidecar.cache import store as cache_store

log = structlog.get_logger()

UNWANTED = 3


async def run(configured: settings.Settings) -> int:
    """Runs one sidecar; answers its exit code. All sockets are closed when this returns."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    token = configured.token_file.read_text(encoding="utf-8").strip()
    shown = access.Access(token, configured.shown_headers)
    server = runtime.Runtime(_target(configured), shown)
    keeper = agent.Agent(_parts(configured, server, shown))
    probed = probes.Server(pod.Pod(keeper, configured.drain_timeout, stop).answer)
    log.info("sidecar.started", worker_id=configured.worker_id, worker=configured.worker_endpoint)
    try:
        if configured.health_port:
            await _listen(configured, probed)
        return await _until_stopped(configured, keeper, stop)
    finally:
        await probed.close()
        await keeper.close()
        await server.close()
        log.info("sidecar.stopped")


async def _listen(configured: settings.Settings, probed: probes.Server) -> None:
    try:
        await probed.start(configured.health_address, configured.health_port)
    except OSError as error:
        at = f"--health-address={configured.health_address} --health-port={configured.health_port}"
        raise OSError(error.errno, error.strerror, at) from error


async def _until_stopped(configured: settings.Settings, keeper: agent.Agent, stop: asyncio.Event) -> int:
    tasks: list[asyncio.Task[object]] = [
        asyncio.create_task(stop.wait()),
        asyncio.create_task(keeper.run()),
        asyncio.create_task(control.follow(_link(configured), keeper, stop)),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            for task in tasks:
                if task.done():
                    task.result()
    except errors.Unwanted as error:
        log.warning("sidecar.unwanted", said=str(error))
        return UNWANTED
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return 0


def _parts(configured: settings.Settings, server: runtime.Runtime, shown: access.Access) -> agent.Parts:
    configured.model_repository.mkdir(parents=True, exist_ok=True)
    used = usage.Usage(server, configured.worker, configured.wedged_after, shown)
    manner = departure.Manner(
        direct=configured.health_port > 0, stay_s=configured.model_stay, bound_s=configured.drain_timeout
    )
    return agent.Parts(
        store=cache_store.Cache(configured.cache_dir, _limits(configured)),
        memory=remember.Memory(state.State(configured.data_dir)),
        server=server,
        usage=used,
        departure=departure.Departure(server, configured.worker, used, manner, shown),
        addresses=endpoints.Endpoints(configured.worker, configured.drain_timeout),
        repository=configured.model_repository,
        worker=configured.worker,
        incarnation=secrets.token_hex(16),
    )


def _limits(configured: settings.Settings) -> cache_store.Limits:
    return cache_store.Limits(
        most_bytes=configured.cache_budget,
        fetches=configured.fetch_limit,
        fetches_of_a_place=configured.fetch_limit_per_repository,
    )


def _link(configured: settings.Settings) -> control.Link:
    return control.Link(
        target=configured.server,
        worker_id=configured.worker_id,
        token_file=configured.token_file,
        ca=configured.server_ca,
        cert=configured.server_cert,
        key=configured.server_key,
        replica_id=configured.replica_id,
    )


def _target(configured: settings.Settings) -> str:
    worker = configured.worker
    host = f"[{worker.host}]" if ":" in worker.host else worker.host
    return f"{host}:{worker.grpc_port}"
