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
from gpu_worker.http import decoding, generate, infer, messages, routes, sharing, views
from gpu_worker.http.routes import Endpoint
from gpu_worker.wire import control as wire_control
from gpu_worker.wire import datatypes, parameters, plain
from gpu_worker.wire import intake as wire_intake
from gpu_worker.wire import rules as wire_rules

log = structlog.get_logger(__name__)

_FILE = "file:"
_REGIONS = (
    Endpoint.SYSTEM_REGIONS,
    Endpoint.SYSTEM_REGISTER,
    Endpoint.SYSTEM_UNREGISTER,
    Endpoint.CUDA_REGIONS,
    Endpoint.CUDA_REGISTER,
    Endpoint.CUDA_UNREGISTER,
)

# None where the answer comes later, from elsewhere.
_Work = Coroutine[Any, Any, messages.Response | None]


class Api:
    """The application of the API port; `stop` and `close` end what still runs."""

    def __init__(
        self,
        engine: border.Engine,
        intake: wire_intake.Intake,
        body_bytes: int,
        rules: wire_rules.Rules = wire_rules.OPEN,
    ) -> None:
        self._engine = engine
        self._rules = rules
        self._infer = infer.Infer(engine, intake, body_bytes, rules)
        self._generate = generate.Generate(engine, intake, rules)
        self._regions = sharing.Regions(engine, rules.sharing)
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: dict[Endpoint, Callable[[messages.Request, routes.Route], _Work]] = {
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
            Endpoint.LOGGING: self._logging,
            Endpoint.TRACE: self._trace,
            Endpoint.GENERATE: self._generate.handle,
            Endpoint.GENERATE_STREAM: self._generate.handle,
            **dict.fromkeys(_REGIONS, self._regions.handle),
        }

    def parallel(self, request: messages.Request) -> bool:
        route = routes.api(request.target)
        return route is not None and route.endpoint in routes.INFERRING

    def leaving(self, target: bytes) -> bool:
        route = routes.api(target) if target else None
        return route is not None and route.endpoint in routes.INFERRING and self._engine.leaving(route.model)

    def handle(self, request: messages.Request) -> None:
        route = routes.api(request.target)
        if route is None:
            request.answer(messages.refusal(404, "Not Found"))
        elif request.method not in route.verbs:
            request.answer(not_allowed(route))
        elif self._rules.restriction.is_on and (refused := self._restricted(request, route)) is not None:
            request.answer(refused)
        elif route.endpoint is Endpoint.INFER:
            try:
                self._infer.handle(request, route)
            except border.InferenceError as error:
                request.answer(messages.failure(error))
        elif route.endpoint in routes.UNSERVED:
            message = f"This server does not support the {route.endpoint.value}"
            request.answer(messages.failure(border.InferenceError(border.ErrorKind.UNSUPPORTED, message)))
        else:
            request.follows_client = route.endpoint in routes.INFERRING
            self._spawn(request, self._calls[route.endpoint](request, route))

    def _restricted(self, request: messages.Request, route: routes.Route) -> messages.Response | None:
        try:
            api = routes.APIS[route.endpoint]
            self._rules.restriction.check(api, lambda name: request.headers.get(name.encode("latin-1"), b""))
        except border.InferenceError as error:
            return messages.refusal(403, error.message)  # trying again would not help, as 503 says
        return None

    async def stop(self) -> None:
        """Gives up the calls that still run; their clients are told."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Ends the threads; to be called once no connection waits for an answer."""
        self._infer.close()

    async def _live(self, _request: messages.Request, _route: routes.Route) -> messages.Response:
        return messages.Response(200 if await self._engine.live() else 400)

    async def _ready(self, _request: messages.Request, _route: routes.Route) -> messages.Response:
        return messages.Response(200 if await self._engine.ready() else 400)

    async def _server(self, _request: messages.Request, _route: routes.Route) -> messages.Response:
        return messages.ok(views.server(await self._engine.server_metadata()))

    async def _model(self, _request: messages.Request, route: routes.Route) -> messages.Response:
        return messages.ok(views.model(await self._engine.model_metadata(route.model, route.version)))

    async def _model_ready(self, _request: messages.Request, route: routes.Route) -> messages.Response:
        ready = await self._engine.model_ready(route.model, route.version)
        return messages.ok() if ready else messages.refusal(400, "Model version not ready")

    async def _config(self, _request: messages.Request, route: routes.Route) -> messages.Response:
        return messages.ok(plain.shown(await self._engine.model_config(route.model, route.version)))

    async def _statistics(self, _request: messages.Request, route: routes.Route) -> messages.Response:
        found = await self._engine.statistics(route.model, route.version)
        return messages.ok({"model_stats": [views.statistics(of) for of in found]})

    async def _index(self, request: messages.Request, _route: routes.Route) -> messages.Response:
        self._check_control(request)
        ready = decoding.body(request).get("ready", False)
        if not isinstance(ready, bool):
            raise datatypes.refused("Unable to parse 'ready': must be a boolean")
        return messages.ok([views.index(entry) for entry in await self._engine.index(ready=ready)])

    async def _load(self, request: messages.Request, route: routes.Route) -> messages.Response:
        self._check_control(request)
        await self._engine.load(route.model, _load_parameters(request))
        return messages.ok()

    async def _unload(self, request: messages.Request, route: routes.Route) -> messages.Response:
        self._check_control(request)
        dependents = parameters.unload_dependents(_parameters(request))
        await self._engine.unload(route.model, unload_dependents=dependents)
        return messages.ok()

    async def _leave(self, request: messages.Request, route: routes.Route) -> messages.Response:
        self._check_control(request)
        await self._engine.leave(route.model)
        return messages.ok()

    async def _logging(self, request: messages.Request, _route: routes.Route) -> messages.Response:
        changes = {}
        if request.method == b"POST":
            self._check_control(request)
            changes = decoding.body(request)
        return messages.ok(dict(await self._engine.log_settings(changes)))

    async def _trace(self, request: messages.Request, route: routes.Route) -> messages.Response:
        changes = {}
        if request.method == b"POST":
            self._check_control(request)
            changes = {name: _trace_values(name, value) for name, value in decoding.body(request).items()}
        return messages.ok(views.trace(await self._engine.trace_settings(route.model, changes)))

    def _check_control(self, request: messages.Request) -> None:
        self._rules.control.check(request.headers.get(wire_control.HEADER.encode(), b""))

    def _spawn(self, request: messages.Request, work: _Work) -> None:
        task = asyncio.get_running_loop().create_task(_answer_with(request, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def not_allowed(route: routes.Route) -> messages.Response:
    """The answer to a wrong verb on a known path."""
    return messages.refusal(405, "Method Not Allowed", b"Allow: %b\r\n" % b", ".join(route.verbs))


async def _answer_with(request: messages.Request, work: _Work) -> None:
    try:
        response = await work
    except border.InferenceError as error:
        response = messages.failure(error)
    except asyncio.CancelledError:
        request.answer(messages.refusal(503, wire_intake.STOPPING))
        raise
    except Exception:
        log.exception("http.call_failed")
        response = messages.refusal(500, "Internal error; the server's log says more")
    if response is not None:
        request.answer(response)


def _trace_values(name: str, value: Any) -> list[str] | None:
    """A trace setting as a list of texts; numbers are taken for theirs, None clears."""
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, (str, int)) and not isinstance(each, bool) for each in values):
        raise datatypes.refused(f"Unable to parse '{name}': must be a string, an array of strings, or null")
    return [str(each) for each in values]


def _parameters(request: messages.Request) -> dict[str, Any]:
    given = decoding.body(request).get("parameters", {})
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
