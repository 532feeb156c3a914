"""One worker from start to exit: binds the fronts, loads the models, serves, drains.

Decides the order in which parts start and stop. Must never leave the process alive after its time to exit is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog
import uvloop

from gpu_worker import core, listener, logs, metrics, ready
from gpu_worker import settings as worker_settings
from gpu_worker.engine import border
from gpu_worker.grpc import grpcio
from gpu_worker.grpc.native import server as native
from gpu_worker.http import api
from gpu_worker.http import limits as http_limits
from gpu_worker.http import server as http_server
from gpu_worker.remote import supervisor
from gpu_worker.wire import intake as wire_intake
from gpu_worker.wire import tls

log = structlog.get_logger(__name__)

# Threads that compute hold the interpreter's lock; the event loop is to have it back within half a millisecond.
_SWITCH_INTERVAL_S = 0.0005
_CLOSE_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 after a signal, 1 when start failed, 2 for flags that are not to be had."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        settings = worker_settings.load(arguments)
        logs.configure(settings.log)
        for name in settings.ignored:
            log.warning("flag.ignored", flag=f"--{name}")
        engine = core.Core.create(settings.core) if settings.frontends == 1 else None
    except border.InferenceError as error:
        sys.stderr.write(f"tms-worker: error: {error.message}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"tms-worker: error: --log-file cannot be opened: {error}\n")
        return 2
    return run(Worker(settings, engine).run()) if engine else supervisor.run(settings, arguments)


def run(work: Coroutine[Any, Any, int]) -> int:
    """Runs a process that serves, tuned for short pauses."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # A search for garbage in all that was imported would hold every request up for tens of milliseconds.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


class Worker:
    """The running worker; made anew for each process."""

    def __init__(self, settings: worker_settings.Settings, engine: core.Core) -> None:
        self._settings = settings
        self._engine = engine
        self._signals = 0
        self._stop: asyncio.Event | None = None
        self._ports: dict[str, int | None] = {"http": None, "grpc": None, "metrics": None}

    async def run(self) -> int:
        """Serves until a signal; see `main` for the result."""
        self._stop = asyncio.Event()
        self._listen_to_signals()
        fronts = Fronts(self._settings, self._engine)
        status = 1
        try:
            self._ports |= await fronts.start()
            log.info("worker.listening", **self._ports)
            status = await self._serve()
        except (OSError, border.InferenceError) as error:
            log.error("worker.start_failed", reason=str(error))  # noqa: TRY400 - the reason says all
        await self._end(fronts, status)
        return status

    async def _serve(self) -> int:
        """Loads, reports and waits; a signal may come in the middle of either."""
        assert self._stop is not None
        loading = asyncio.ensure_future(self._engine.start())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({loading, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set():
                loading.result()
                self._report()
                await stopped
        finally:
            loading.cancel()
            stopped.cancel()
            await asyncio.gather(loading, stopped, return_exceptions=True)
        return 0

    async def _end(self, fronts: Fronts, status: int) -> None:
        timeout_s = self._settings.exit_timeout_s if status == 0 else 0.0
        log.info("worker.draining", timeout_s=timeout_s)
        ready.remove(self._settings.ready_file)
        try:
            async with asyncio.timeout(timeout_s + _CLOSE_S):
                drained = await self._drain(fronts, timeout_s)
                await fronts.close()
                await self._engine.close()
        except TimeoutError:
            drained = False
        log.info("worker.stopped", drained=drained)
        if not drained and status == 0:
            # A model that never returns holds its thread, and the interpreter would wait for it.
            exit_at_once(status)

    async def _drain(self, fronts: Fronts, timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        await fronts.drain(timeout_s)
        return await self._engine.drain(max(0.0, until_s - loop.time()))

    def _report(self) -> None:
        log.info("worker.ready", **self._ports)
        ready.write(self._settings.ready_file, self._ports)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        if self._signals > 1:
            exit_at_once(128 + number)
        log.info("worker.signalled", signal=signal.Signals(number).name)
        if self._stop is not None:
            self._stop.set()


class Fronts:
    """The listeners of a worker, made from its settings."""

    def __init__(self, settings: worker_settings.Settings, engine: border.Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._intake = wire_intake.Intake(engine)
        self._servers: list[http_server.Server] = []
        self._api: api.Api | None = None
        self._metrics: metrics.Metrics | None = None
        self._grpc: grpcio.Server | native.Server | None = None

    async def start(self) -> dict[str, int]:
        """Binds what is on; returns the ports by front. OSError when an address or a TLS file cannot be had."""
        ports = {}
        if self._settings.http:
            ports["http"] = await self._start_http(self._settings.http)
        if self._settings.grpc:
            front = native.Server if self._settings.grpc_native else grpcio.Server
            self._grpc = front(self._engine, self._intake, self._settings.grpc, self._settings.grpc_rules)
            ports["grpc"] = await self._grpc.start()
        if self._settings.metrics:
            ports["metrics"] = await self._start_metrics(self._settings.metrics)
        return ports

    async def drain(self, timeout_s: float) -> None:
        """Accepts no more connections, sends the clients of those there are elsewhere, takes no new requests then.

        What clients ask before they have heard that they should go is still answered.
        """
        # An engine that is gone has nobody to tell; the connections are still to end well.
        with contextlib.suppress(border.InferenceError):
            await self._engine.leave("")
        for server in self._servers:
            server.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as leaving:
                for server in self._servers:
                    leaving.create_task(server.quiet())
                if self._grpc:
                    leaving.create_task(self._grpc.stop(timeout_s))
        self._intake.stop()

    async def close(self) -> None:
        """Ends every connection, once its last answer is out."""
        if self._api:
            await self._api.stop()
        for server in self._servers:
            await server.close()
        if self._api:
            self._api.close()
        if self._metrics:
            self._metrics.close()

    async def _start_http(self, http: worker_settings.Http) -> int:
        self._api = api.Api(self._engine, self._intake, http.limits.body_bytes, self._settings.http_rules)
        server = http_server.Server(self._api, self._intake, http.limits)
        self._servers.append(server)
        context = tls.context(*http.tls) if http.tls else None
        return await server.start(listener.Listen(http.address, http.port, context, http.reuse_port))

    async def _start_metrics(self, settings: worker_settings.Metrics) -> int:
        self._metrics = metrics.Metrics(self._engine, settings.switches)
        server = http_server.Server(self._metrics, self._intake, http_limits.Limits(body_bytes=0))
        self._servers.append(server)
        return await server.start(listener.Listen(settings.address, settings.port))


def exit_at_once(status: int) -> None:
    """Waits for nobody."""
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(status)
