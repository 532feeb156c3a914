"""The V2 API over HTTP: every endpoint but infer, and the errors of paths.

Must never wait: what takes time becomes a task that it owns.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from gpu_worker.engine import border
from gpu_worker.http import decoding, infer, messages, routes, views
from gpu_worker.http.routes import Endpoint
from gpu_worker.wire import control as wire_control
from gpu_worker.wire import datatypes, parameters
from gpu_worker.wire import intake as wire_intake

log = structlog.get_logger(__name__)

_FILE = "file:"


class Api:
    """The application of the API port; `stop` and `close` end what still runs."""

    def __init__(
        self,
        engine: border.Engine,
        intake: wire_intake.Intake,
        body_bytes: int,
        control: wire_control.Control = wire_control.OPEN,
    ) -> None:
        self._engine = engine
        self._control = control
        self._infer = infer.Infer(engine, intake, body_bytes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: dict[Endpoint, Callable[[messages.Request, routes.Route], None]] = {
            Endpoint.INFER: self._infer.handle,
            Endpoint.LIVE: self._live,
            Endpoint.READY: self._ready,
            Endpoint.SERVER: self._server,
            Endpoint.MODEL: self._model,
            Endpoint.MODEL_READY: self._model_ready,
            Endpoint.CONFIG: self._config,
            Endpoint.STATISTICS: self._statistics,
            Endpoint.INDEX: self._index,
            Endpoint.LOAD: self._load,
            Endpoint.UNLOAD: self._unload,
            Endpoint.LEAVE: self._leave,
        }

    def parallel(self, request: messages.Request) -> bool:
        route = routes.api(request.target)
        return route is not None and route.endpoint is Endpoint.INFER

    def leaving(self, target: bytes) -> bool:
        route = routes.api(target) if target else None
        return route is not None and route.endpoint is Endpoint.INFER and self._engine.leaving(route.model)

    def handle(self, request: messages.Request) -> None:
        route = routes.api(request.target)
        if route is None:
            request.answer(messages.refusal(404, "Not Found"))
        elif request.method not in route.verbs:
            request.answer(not_allowed(route))
        elif route.endpoint in routes.UNSERVED:
            message = f"This server does not support the {route.endpoint.value}"
            request.answer(messages.failure(border.InferenceError(border.ErrorKind.UNSUPPORTED, message)))
        else:
            try:
                self._handlers[route.endpoint](request, route)
            except border.InferenceError as error:
                request.answer(messages.failure(error))

    async def stop(self) -> None:
        """Gives up what still loads or unloads; its clients are told."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Ends the threads; to be called once no connection waits for an answer."""
        self._infer.close()

    def _live(self, request: messages.Request, _route: routes.Route) -> None:
        request.answer(messages.Response(200 if self._engine.live() else 400))

    def _ready(self, request: messages.Request, _route: routes.Route) -> None:
        request.answer(messages.Response(200 if self._engine.ready() else 400))

    def _server(self, request: messages.Request, _route: routes.Route) -> None:
        request.answer(messages.ok(views.server(self._engine.server_metadata())))

    def _model(self, request: messages.Request, route: routes.Route) -> None:
        request.answer(messages.ok(views.model(self._engine.model_metadata(route.model, route.version))))

    def _model_ready(self, request: messages.Request, route: routes.Route) -> None:
        ready = self._engine.model_ready(route.model, route.version)
        request.answer(messages.ok() if ready else messages.refusal(400, "Model version not ready"))

    def _config(self, request: messages.Request, route: routes.Route) -> None:
        request.answer(messages.ok(views.plain(self._engine.model_config(route.model, route.version))))

    def _statistics(self, request: messages.Request, route: routes.Route) -> None:
        found = self._engine.statistics(route.model, route.version)
        request.answer(messages.ok({"model_stats": [views.statistics(of) for of in found]}))

    def _index(self, request: messages.Request, _route: routes.Route) -> None:
        self._check_control(request)
        ready = _body(request).get("ready", False)
        if not isinstance(ready, bool):
            raise datatypes.refused("Unable to parse 'ready': must be a boolean")
        request.answer(messages.ok([views.index(entry) for entry in self._engine.index(ready=ready)]))

    def _load(self, request: messages.Request, route: routes.Route) -> None:
        self._check_control(request)
        self._spawn(request, self._engine.load(route.model, _load_parameters(request)))

    def _unload(self, request: messages.Request, route: routes.Route) -> None:
        self._check_control(request)
        dependents = parameters.unload_dependents(_parameters(request))
        self._spawn(request, self._engine.unload(route.model, unload_dependents=dependents))

    def _leave(self, request: messages.Request, route: routes.Route) -> None:
        self._check_control(request)
        self._engine.leave(route.model)
        request.answer(messages.ok())

    def _check_control(self, request: messages.Request) -> None:
        self._control.check(request.headers.get(wire_control.HEADER.encode(), b""))

    def _spawn(self, request: messages.Request, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(_answer_after(request, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def not_allowed(route: routes.Route) -> messages.Response:
    """The answer to a wrong verb on a known path."""
    return messages.refusal(405, "Method Not Allowed", b"Allow: %b\r\n" % b", ".join(route.verbs))


async def _answer_after(request: messages.Request, work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except border.InferenceError as error:
        request.answer(messages.failure(error))
    except asyncio.CancelledError:
        request.answer(messages.refusal(503, wire_intake.STOPPING))
        raise
    except Exception:
        log.exception("http.repository_call_failed")
        request.answer(messages.refusal(500, "Internal error; the server's log says more"))
    else:
        request.answer(messages.ok())


def _body(request: messages.Request) -> dict[str, Any]:
    return decoding.parse(bytes(request.body)) if request.body else {}


def _parameters(request: messages.Request) -> dict[str, Any]:
    given = _body(request).get("parameters", {})
    if not isinstance(given, dict):
        raise datatypes.refused("Unable to parse 'parameters': must be an object")
    return given


def _load_parameters(request: messages.Request) -> dict[str, border.Parameter | bytes]:
    given: dict[str, border.Parameter | bytes] = {}
    for name, value in _parameters(request).items():
        if not isinstance(value, (str, bool, int, float)):
            raise datatypes.refused(f"parameter '{name}' of a model load must be a string, a number or a boolean")
        given[name] = _decode_file(name, value) if name.startswith(_FILE) else value
    return given


def _decode_file(name: str, value: border.Parameter) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError) as error:
        raise datatypes.refused(f"parameter '{name}' of a model load must be base64 text: {error}") from error
