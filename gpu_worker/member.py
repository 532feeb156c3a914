"""One process of a worker that has several: the engine, or a front.

Decides how each role starts and drains at the supervisor's word. Must never outlive the supervisor: when the channel to
it ends, so does the process. Signals are the supervisor's: a terminal or a manager sends them to all at once.

Usage: python -m gpu_worker.member engine|front DESCRIPTOR FLAGS; for the supervisor alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
from typing import Any

import structlog

from gpu_worker import app, core, logs
from gpu_worker import settings as worker_settings
from gpu_worker.engine import border
from gpu_worker.ipc import link, memory
from gpu_worker.remote import channel, client, server

log = structlog.get_logger(__name__)

_CLOSE_S = 10.0
_LOST_S = 1.0


def main() -> int:
    """The exit status, as the worker's."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    role, descriptor, *arguments = sys.argv[1:]
    end = socket.socket(fileno=int(descriptor))
    end.set_inheritable(False)
    try:
        settings = worker_settings.load(arguments)
        logs.configure(settings.log)
        work = _front(settings, end) if role == "front" else _engine(settings, end)
        return app.run(work)
    except border.InferenceError as error:
        sys.stderr.write(f"tms-worker: error: {error.message}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"tms-worker: error: {error}\n")
        return 1


async def _engine(settings: worker_settings.Settings, end: socket.socket) -> int:
    structlog.contextvars.bind_contextvars(member="engine")
    return await EngineProcess(settings, core.Core.create(settings.core), end).run()


async def _front(settings: worker_settings.Settings, end: socket.socket) -> int:
    return await FrontProcess(settings, end).run()


class EngineProcess:
    """The engine, its metrics, and the border's other side for each front."""

    def __init__(self, settings: worker_settings.Settings, engine: core.Core, end: socket.socket) -> None:
        self._engine = engine
        self._fronts: dict[int, tuple[server.Front, list[int]]] = {}
        # Metrics are the engine's: what is counted, is counted here.
        self._metrics = app.Fronts(dataclasses.replace(settings, http=None, grpc=None), engine)
        self._drain: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._channel = channel.Channel(end, self._heard, _orphaned)
        # Clients change the log here; fronts hear of it over the border.
        logs.listen(lambda settings: self._channel.tell("log", settings=settings.told()))

    async def run(self) -> int:
        """Serves until it is told to drain; 1 where the start failed."""
        status = 1
        timeout_s = 0.0
        try:
            ports = await self._metrics.start()
            self._channel.tell("listening", metrics=ports.get("metrics"))
            timeout_s = await self._load_and_serve()
            status = 0
        except (OSError, border.InferenceError) as error:
            log.error("worker.start_failed", reason=str(error))  # noqa: TRY400 - the reason says all
        await self._end(timeout_s)
        return status

    async def _load_and_serve(self) -> float:
        """How long a drain may take, once it is asked for."""
        loading = asyncio.ensure_future(self._engine.start())
        try:
            waiting: list[asyncio.Future[Any]] = [loading, self._drain]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not self._drain.done():
                loading.result()
                self._channel.tell("loaded")
            return await self._drain
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)

    async def _end(self, timeout_s: float) -> None:
        drained = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s + _CLOSE_S):
                drained = await self._engine.drain(timeout_s)
                await self._metrics.close()
                await self._engine.close()
        self._channel.tell("drained", drained=drained)
        if not drained:
            # A model that never returns holds its thread, and the interpreter would wait for it.
            app.exit_at_once(0)

    def _heard(self, words: channel.Words, descriptors: list[int]) -> None:
        if words["kind"] == "attach":
            self._attach(words["serial"], descriptors)
        elif words["kind"] == "detach":
            self._detach(words["serial"])
        elif words["kind"] == "drain" and not self._drain.done():
            self._drain.set_result(words["timeout_s"])

    def _attach(self, serial: int, descriptors: list[int]) -> None:
        arriving, heard, leaving, rung = descriptors
        receiver = link.Receiver(memory.Area(arriving), heard)
        sender = link.Sender(memory.Area(leaving), rung)
        front = server.Front(
            self._engine,
            self._engine.departures,
            sender,
            receiver,
            lambda _reason: self._channel.tell("given_up", serial=serial),
        )
        for descriptor in (arriving, leaving):
            os.close(descriptor)
        self._fronts[serial] = front, [heard, rung]

    def _detach(self, serial: int) -> None:
        front, bells = self._fronts.pop(serial, (None, []))
        if front is not None:
            front.close()
        for bell in bells:
            os.close(bell)


class FrontProcess:
    """The listeners of one front process, and the engine as it sees it."""

    def __init__(self, settings: worker_settings.Settings, end: socket.socket) -> None:
        self._settings = settings
        loop = asyncio.get_running_loop()
        self._begin: asyncio.Future[tuple[channel.Words, list[int]]] = loop.create_future()
        self._drain: asyncio.Future[float] = loop.create_future()
        self._engine: client.RemoteEngine | None = None
        self._channel = channel.Channel(end, self._heard, _orphaned)

    async def run(self) -> int:
        """Serves until it is told to drain; 1 where the start failed."""
        words, descriptors = await self._begin
        structlog.contextvars.bind_contextvars(member=f"front-{words['index']}")
        engine = self._engine = _connected(descriptors)
        fronts = app.Fronts(_shared(self._settings, words), engine)
        try:
            # Once this is answered, all is known that the engine tells without being asked: who leaves, what is logged.
            await engine.live()
            await fronts.start()
        except (OSError, border.InferenceError) as error:
            log.error("worker.start_failed", reason=str(error))  # noqa: TRY400 - the reason says all
            return 1
        self._channel.tell("listening")
        log.info("front.listening")
        await self._end(fronts, engine, await self._drain)
        return 0

    async def _end(self, fronts: app.Fronts, engine: client.RemoteEngine, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        drained = False
        with contextlib.suppress(TimeoutError, border.InferenceError):
            async with asyncio.timeout(timeout_s + _CLOSE_S):
                await fronts.drain(timeout_s)
                drained = await engine.drain(max(0.0, until_s - loop.time()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await fronts.close()
        log.info("front.stopped", drained=drained)
        self._channel.tell("drained", drained=drained)

    def _heard(self, words: channel.Words, descriptors: list[int]) -> None:
        if words["kind"] == "begin":
            self._begin.set_result((words, descriptors))
        elif words["kind"] == "drain" and not self._drain.done():
            self._drain.set_result(words["timeout_s"])
        elif words["kind"] == "lost" and not self._drain.done():
            if self._engine is not None:
                self._engine.lost()
            self._drain.set_result(_LOST_S)


def _connected(descriptors: list[int]) -> client.RemoteEngine:
    leaving, rung, arriving, heard = descriptors
    sender = link.Sender(memory.Area(leaving), rung)
    receiver = link.Receiver(memory.Area(arriving), heard)
    for descriptor in (leaving, arriving):
        os.close(descriptor)
    return client.RemoteEngine(sender, receiver, lambda _reason: app.exit_at_once(1))


def _shared(settings: worker_settings.Settings, words: channel.Words) -> worker_settings.Settings:
    """The settings with the ports that all fronts share, and without what the engine serves."""
    http, grpc = settings.http, settings.grpc
    return dataclasses.replace(
        settings,
        http=dataclasses.replace(http, port=words["http"], reuse_port=True) if http else None,
        grpc=dataclasses.replace(grpc, port=words["grpc"], reuse_port=True) if grpc else None,
        metrics=None,
    )


def _orphaned() -> None:
    app.exit_at_once(1)


if __name__ == "__main__":
    sys.exit(main())
