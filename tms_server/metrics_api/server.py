"""The HTTPS face of the metrics API: who calls, whether they may, and the answer. It computes no metric itself.

Certificates and trusted authorities change while it serves; new connections see the new ones.
"""

from __future__ import annotations

import dataclasses
import pathlib
import socket
import ssl
import tempfile
from typing import Any

import structlog
from aiohttp import web

from tms_server.metrics_api import bodies, certificates, front_proxy, rights, selectors
from tms_server.metrics_api import source as source_module
from tms_server.model import errors

log = structlog.get_logger(__name__)
MOST_AT_ONCE = 512
STOP_S = 2.0
OPEN_PATHS = ("healthz", "livez", "readyz")
_CODES: tuple[tuple[type[errors.TmsError], int, str], ...] = (
    (errors.InvalidField, 400, "BadRequest"),
    (errors.Unauthenticated, 401, "Unauthorized"),
    (errors.PermissionDenied, 403, "Forbidden"),
    (errors.NotFound, 404, "NotFound"),
    (errors.ResourceExhausted, 429, "TooManyRequests"),
    (errors.Unimplemented, 405, "MethodNotAllowed"),
    (errors.Retryable, 503, "ServiceUnavailable"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen; port 0 takes a free one."""

    host: str
    port: int


class Server:
    """Serves from `start` on; `show` and `trust` may be called at any time."""

    def __init__(self, source: source_module.Source, asked: rights.Rights, shown: certificates.Shown) -> None:
        self._source = source
        self._rights = asked
        self._shown = shown
        self._trust: front_proxy.Trust | None = None
        self._context = _context(shown, None)
        self._runner: web.AppRunner | None = None
        self._at_once = 0

    async def start(self, at: Address) -> int:
        """Listens; answers the port. FailedPrecondition when the address cannot be had."""
        app = web.Application(client_max_size=64 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=STOP_S)
        await self._runner.setup()
        try:
            bound = socket.create_server((at.host, at.port), family=_family(at.host))
        except OSError as error:
            raise errors.FailedPrecondition(f"metrics_api: cannot listen on {at.host}:{at.port}: {error}") from error
        await web.SockSite(self._runner, bound, ssl_context=self._front()).start()
        return int(bound.getsockname()[1])

    async def stop(self) -> None:
        """Takes no new requests and ends those in flight within moments."""
        if self._runner is None:
            return
        open_ = self._runner.server.connections if self._runner.server is not None else []
        transports = [each.transport for each in open_ if each.transport is not None]
        await self._runner.cleanup()
        for each in transports:
            # Politely, it would wait for the other side to agree.
            each.abort()

    def show(self, shown: certificates.Shown) -> None:
        """Uses another certificate for new connections."""
        self._shown, self._context = shown, _context(shown, self._trust)

    def trust(self, trust: front_proxy.Trust) -> None:
        """Believes other front proxies from now on."""
        self._trust, self._context = trust, _context(self._shown, trust)

    def _front(self) -> ssl.SSLContext:
        """A context that hands each new connection to the present one."""
        front = _context(self._shown, None)

        def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            del name
            connection.context = self._context

        front.sni_callback = choose
        return front

    async def _answer(self, request: web.Request) -> web.Response:
        if self._at_once >= MOST_AT_ONCE:
            return _refusal(errors.ResourceExhausted("too many requests at once"))
        self._at_once += 1
        try:
            return await self._dispatch(request)
        except errors.TmsError as error:
            return _refusal(error)
        except Exception as error:
            log.exception("metrics_api.failed", path=request.path, error=repr(error))
            return _json(bodies.status(500, "InternalError", "an internal error occurred"), 500)
        finally:
            self._at_once -= 1

    async def _dispatch(self, request: web.Request) -> web.Response:
        parts = request.path.strip("/").split("/")
        if len(parts) == 1 and parts[0] in OPEN_PATHS:
            return self._health(parts[0])
        question = _question(request, parts)
        await self._allow(request, question)
        if request.method not in ("GET", "HEAD") or question.verb == "watch":
            raise errors.Unimplemented(f"{request.method} is not served here; metrics can be read only")
        if not _accepts_json(request.headers.getall("Accept", ["*/*"])):
            return _json(bodies.status(406, "NotAcceptable", "only application/json is served"), 406)
        return _json(await self._body(request, question, parts))

    async def _body(self, request: web.Request, question: rights.Question, parts: list[str]) -> dict[str, Any]:
        match parts:
            case ["apis"]:
                return bodies.groups()
            case ["apis", bodies.GROUP]:
                return bodies.group()
            case ["apis", bodies.GROUP, bodies.VERSION]:
                return bodies.resources()
        kind = bodies.KINDS.get(question.metric)
        if kind is None:
            raise errors.NotFound(f"the server could not find the requested resource: {request.path}")
        selector = selectors.parse(request.query.get("labelSelector", ""))
        return bodies.values(await self._source.series(kind, question.namespace, selector))

    async def _allow(self, request: web.Request, question: rights.Question) -> None:
        user = await self._user(request)
        verdict = await self._rights.may(user, question)
        if verdict.allowed:
            return
        if user == front_proxy.ANONYMOUS:
            raise errors.Unauthenticated("Unauthorized")
        raise errors.PermissionDenied(_forbidden(user, question, verdict.reason))

    async def _user(self, request: web.Request) -> front_proxy.User:
        """Whom the front proxy speaks for, else whose token it is, else nobody known."""
        trust, name = self._trust, _common_name(request)
        if trust is not None and name and trust.allows(name):
            named = trust.user(list(request.headers.items()))
            if named is not None:
                return named
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return front_proxy.ANONYMOUS
        user = await self._rights.whose(token.strip())
        if user is None:
            raise errors.Unauthenticated("Unauthorized")
        return user

    def _health(self, path: str) -> web.Response:
        if path == "readyz" and self._trust is None:
            return web.Response(status=503, text="not ready: whom to believe was not read yet\n")
        return web.Response(text="ok")


def _question(request: web.Request, parts: list[str]) -> rights.Question:
    verb = "get" if request.method in ("GET", "HEAD") else request.method.lower()
    match parts:
        case ["apis", bodies.GROUP, bodies.VERSION, "namespaces", namespace, metric]:
            watching = request.query.get("watch", "").lower() in ("1", "true")
            reading = "watch" if watching else "list"
            return rights.Question(
                path=request.path, verb=reading if verb == "get" else verb, namespace=namespace, metric=metric
            )
    return rights.Question(path=request.path, verb=verb)


def _forbidden(user: front_proxy.User, question: rights.Question, reason: str) -> str:
    if question.metric:
        what = f"{question.metric}.{bodies.GROUP} is forbidden: User {user.name!r} cannot {question.verb} resource"
        where = f"{question.metric!r} in API group {bodies.GROUP!r} in the namespace {question.namespace!r}"
        return f"{what} {where}" + (f": {reason}" if reason else "")
    return f"forbidden: User {user.name!r} cannot {question.verb} path {question.path!r}"


def _accepts_json(headers: list[str]) -> bool:
    """Whether plain JSON will do. Answers in other shapes (``as=``) are refused, so that callers ask for the plain one."""
    for each in ",".join(headers).split(","):
        kind, *parameters = (part.strip() for part in each.split(";"))
        if kind in ("application/json", "application/*", "*/*") and not any(p.startswith("as=") for p in parameters):
            return True
    return False


def _common_name(request: web.Request) -> str:
    """Of the client's certificate; one that our trusted authorities did not sign never gets past the handshake."""
    certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
    names = [value for part in (certificate or {}).get("subject", ()) for key, value in part if key == "commonName"]
    return names[-1] if names else ""


def _refusal(error: errors.TmsError) -> web.Response:
    code, reason = next(
        ((code, reason) for kind, code, reason in _CODES if isinstance(error, kind)), (500, "InternalError")
    )
    return _json(bodies.status(code, reason, str(error)), code)


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(body, status=status, headers={"Cache-Control": "no-cache, private"})


def _context(shown: certificates.Shown, trust: front_proxy.Trust | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    # The library reads keys from files only.
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "pair.pem"
        path.touch(mode=0o600)
        path.write_text(shown.key + shown.certificate)
        context.load_cert_chain(path)
    if trust is not None:
        context.load_verify_locations(cadata=trust.ca_pem)
    return context


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
