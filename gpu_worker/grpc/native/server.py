"""The listener of the own gRPC front: its methods, its limits from flags, TLS, drain.

Decides which calls become what. Must never let a call fail that came before its client was told to go.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from gpu_worker import listener
from gpu_worker.engine import border
from gpu_worker.grpc import calls, guard, health, listen, reflection, service
from gpu_worker.grpc.native import deadlines, exchange, heads, strangers, streaming, turns, unary
from gpu_worker.grpc.native import limits as native_limits
from gpu_worker.http2 import headers, streams
from gpu_worker.http2 import limits as http2_limits
from gpu_worker.http2 import server as http2_server
from gpu_worker.wire import intake as wire_intake
from gpu_worker.wire import rules as wire_rules
from gpu_worker.wire import tls
from protos.inference.v2 import predict_pb2

_LOOK_S = 0.25
_FOREVER_MS = 2**31 - 1


class Front:
    """The application of the connections: makes a handler for each call."""

    def __init__(
        self,
        engine: border.Engine,
        intake: wire_intake.Intake,
        inference: service.Service,
        methods: Mapping[str, calls.Method],
        limits: native_limits.Limits,
    ) -> None:
        self.engine = engine
        self.intake = intake
        self.service = inference
        self.limits = limits
        self.compress = False
        self.loop = asyncio.get_running_loop()
        self.clock = self.loop.time
        self.deadlines = deadlines.Deadlines(self.clock)
        self.gathering: dict[exchange.Exchange, float] = {}
        self.turns = turns.Turns(intake)
        by_path = {path.encode(): method for path, method in methods.items()}
        self._views = heads.Views({**by_path, service.INFER.encode(): INFER})

    def view(self, head: headers.Head) -> heads.View:
        view = self._views.view(head)
        view.infers = view.method is INFER and view.failure is None and view.refusal is None
        return view

    def view_like(self, view: heads.View, fields: tuple[headers.Field, ...], shared: int) -> heads.View | None:
        return self._views.view_like(view, fields, shared)

    def opened(self, stream: streams.Stream, head: headers.Head, ended: bool) -> streams.Handler:  # noqa: FBT001 - Application's
        view: heads.View = head.view
        if view.infers and not ended:
            return unary.Infer(self, stream, view)
        if view.failure is not None:
            stream.finish(view.failure)
            return streams.NOBODY
        handler: Any
        if view.refusal is not None:
            handler = strangers.Stranger(stream, view.refusal)
        elif view.method is INFER:
            handler = unary.Infer(self, stream, view)
        elif isinstance(view.method, calls.Unary):
            handler = unary.Unary(self, stream, view, view.method)
        else:
            assert view.method is not None
            handler = streaming.Streaming(self, stream, view, view.method)
        if ended:
            handler.ended()
        found: streams.Handler = handler
        return found

    def sweep(self, now_s: float) -> None:
        """Ends calls whose message does not come."""
        for call in [call for call, until_s in self.gathering.items() if until_s <= now_s]:
            if call.stream.host.held or call.withholds:
                self.gathering[call] = now_s + self.limits.message_timeout_s
            else:
                call.expire_message()

    def close(self) -> None:
        self.deadlines.close()
        self.turns.close()


async def _never(_request: Any, _call: calls.Call) -> Any:
    raise AssertionError("ModelInfer has no task")


INFER = calls.Unary(predict_pb2.ModelInferRequest, _never)
"""Stands for ModelInfer among the methods."""


class Server:
    """Made, started, drained and closed on one event loop."""

    def __init__(
        self,
        engine: border.Engine,
        intake: wire_intake.Intake,
        where: listen.Listen,
        rules: wire_rules.Rules = wire_rules.OPEN,
        limits: native_limits.Limits | None = None,
    ) -> None:
        self._listen = where
        self._health = health.Health(engine)
        inference = service.Service(engine, intake, rules)
        named = reflection.Reflection([service.NAME, health.NAME])
        table = {
            **inference.table(),
            **inference.table_of_bytes(),
            **guard.guarded(self._health.table(), rules.restriction),
            **named.table(),
        }
        self.front = Front(engine, intake, inference, table, limits or native_limits.Limits())
        self.front.compress = where.compression is not grpc.Compression.NoCompression
        self.http2 = http2_server.Server(self.front, limits_of(dict(where.arguments)))
        self._loop = asyncio.get_running_loop()
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> int:
        """Listens; returns the bound port. OSError when the address or the TLS files cannot be had."""
        where = self._listen
        secure = _context(where.tls) if where.tls else None
        try:
            port = await self.http2.start(listener.Listen(where.address, where.port, secure, where.reuse_port))
        except OSError as error:
            raise OSError(f"cannot listen for gRPC on {where.address}:{where.port}: {error}") from error
        self._sweep()
        return port

    async def stop(self, grace_s: float) -> None:
        """Stops accepting, tells clients to go, and gives calls `grace_s` to finish.

        Calls that arrive before their client has heard of it are served like those in flight.
        """
        self._health.stop()
        await self.http2.stop(grace_s)
        if self._sweeper:
            self._sweeper.cancel()
        self.front.close()

    def sweep(self, now_s: float) -> None:
        """Does what is due at `now_s`, beside what each connection does itself."""
        self.front.sweep(now_s)
        for connection in tuple(self.http2.connections):
            if any(map(self.front.engine.leaving, connection.session.notes)):
                connection.go_away()

    def _sweep(self) -> None:
        self.sweep(self.front.clock())
        self._sweeper = self._loop.call_later(_LOOK_S, self._sweep)


def limits_of(arguments: Mapping[str, int]) -> http2_limits.Limits:
    """The limits of connections from channel arguments of gRPC's core, which the flags are made to."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        field, read = _ARGUMENTS[name]
        found[field] = read(value)
        if read is _seconds and not 0 < value < _FOREVER_MS:
            found[field] = _UNSET_S[field]
    return http2_limits.Limits(**found)


def _seconds(milliseconds: int) -> float:
    return milliseconds / 1000


_ARGUMENTS: Mapping[str, tuple[str, Callable[[int], float]]] = {
    "grpc.keepalive_time_ms": ("keepalive_time_s", _seconds),
    "grpc.keepalive_timeout_ms": ("keepalive_timeout_s", _seconds),
    "grpc.keepalive_permit_without_calls": ("keepalive_without_calls", bool),
    "grpc.http2.max_pings_without_data": ("keepalive_pings", int),
    "grpc.http2.min_ping_interval_without_data_ms": ("ping_interval_s", _seconds),
    "grpc.http2.max_ping_strikes": ("ping_strikes", int),
    "grpc.max_connection_age_ms": ("age_s", _seconds),
    "grpc.max_connection_age_grace_ms": ("age_grace_s", _seconds),
}
_NEVER_S = float("inf")
_UNSET_S = {
    "keepalive_time_s": _NEVER_S,
    "keepalive_timeout_s": _NEVER_S,
    "ping_interval_s": 0.0,
    "age_s": 0.0,
    "age_grace_s": _NEVER_S,
}


def _context(files: listen.Tls) -> ssl.SSLContext:
    root = str(files.root) if files.root and files.mutual else None
    return tls.context(str(files.certificate), str(files.key), root, "h2")
