"""The infer endpoint: a body to the engine, its answer to a body.

Decides what is worth a thread: large JSON and compression leave the event loop. Must never answer twice.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import structlog

from gpu_worker.engine import border
from gpu_worker.http import decoding, encoding, messages, plans, routes
from gpu_worker.wire import compression, datatypes
from gpu_worker.wire import intake as wire_intake
from gpu_worker.wire import rules as wire_rules

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_LARGE_BYTES = 2**20
_THREADS = 2
_Decode = Callable[[border.Buffer], decoding.Inference]
_ENCODINGS = b"Accept-Encoding: gzip, deflate\r\n"


class Infer:
    """Handles infer requests; `close` ends its threads."""

    def __init__(
        self, engine: border.Engine, intake: wire_intake.Intake, body_bytes: int, rules: wire_rules.Rules
    ) -> None:
        self._engine = engine
        self._intake = intake
        self._rules = rules
        self._body_bytes = body_bytes
        self._plans = plans.Plans()
        self._encoder = encoding.Encoder()
        self._asking: set[asyncio.Task[None]] = set()
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS, "http-codec")

    def handle(self, request: messages.Request, route: routes.Route) -> None:
        """Decodes and submits. Raises InferenceError for what is wrong at first sight."""
        json_bytes = _json_bytes(request)
        size_bytes = len(request.body) if json_bytes is None else json_bytes
        if not size_bytes:
            self._ask(request, route)
        elif size_bytes > _LARGE_BYTES or b"content-encoding" in request.headers:
            decode = functools.partial(self._plans.decode, route.model, json_bytes=json_bytes)
            self._begin(request, route, decode, large=True)
        else:
            body, request.body = request.body, b""
            try:
                self._submit(request, route, self._plans.decode(route.model, body, json_bytes))
            except Exception as error:  # noqa: BLE001 - every failure is told
                _fail(request, error)

    def close(self) -> None:
        for task in self._asking:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, request: messages.Request, route: routes.Route) -> None:
        task = asyncio.get_running_loop().create_task(self._handle_raw(request, route))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _handle_raw(self, request: messages.Request, route: routes.Route) -> None:
        """A body without JSON: what it holds, the model says."""
        try:
            metadata = await self._engine.model_metadata(route.model, route.version)
            config = await self._engine.model_config(route.model, route.version)
        except border.InferenceError as error:
            request.answer(messages.failure(error))
        except asyncio.CancelledError:
            request.answer(messages.refusal(503, wire_intake.STOPPING))
            raise
        else:
            decode = functools.partial(decoding.decode_raw, metadata, batched=config.max_batch_size > 0)
            self._begin(request, route, decode, large=False)

    def _begin(self, request: messages.Request, route: routes.Route, decode: _Decode, *, large: bool) -> None:
        coding = request.headers.get(b"content-encoding", b"").decode("latin-1").lower()
        work = functools.partial(self._decode, request, decode, coding)
        submit = functools.partial(self._submit, request, route)
        self._perform(request, work, submit, in_thread=large or bool(coding))

    def _decode(self, request: messages.Request, decode: _Decode, coding: str) -> decoding.Inference:
        body = compression.inflate(request.body, coding, self._body_bytes)
        request.body = b""
        return decode(body)

    def _submit(self, request: messages.Request, route: routes.Route, inference: decoding.Inference) -> None:
        if request.gone:
            request.answer(messages.refusal(503, wire_intake.STOPPING))
            return
        rules = self._rules
        parameters: Mapping[str, border.Parameter] = inference.parameters
        if rules.forwarding.is_on:
            parameters = rules.forwarding.add(parameters, messages.texts(request.headers))
        shared_bytes = 0 if inference.form else rules.sharing.claim(inference.inputs, inference.outputs)
        if shared_bytes and not self._intake.hold(shared_bytes):
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, wire_intake.FULL)
        reply = _Reply(self, request, inference.wishes, shared_bytes)
        request.inference = border.InferRequest(
            route.model,
            route.version,
            inference.id,
            inference.inputs,
            inference.outputs,
            parameters,
            reply,
            received=messages.received(request, parent=rules.trace_context),
            form=inference.form,
        )
        try:
            self._intake.submit(request.inference)
        except border.InferenceError:
            self._intake.let_go(shared_bytes)
            raise

    def finished(self, shared_bytes: int) -> None:
        if shared_bytes:
            self._intake.let_go(shared_bytes)
        self._intake.finished()

    def respond(self, request: messages.Request, wishes: decoding.Wishes, answer: border.InferResponse) -> None:
        """Encodes `answer` for the client of `request`."""
        accepted = request.headers.get(b"accept-encoding")
        coding = compression.choose(accepted.decode("latin-1")) if accepted else ""
        if not coding and (response := self._encoder.quickly(answer, wishes)):
            response.close = self._engine.leaving(answer.model_name)
            request.answer(response)
            return
        size = sum(len(tensor.data) for tensor in answer.outputs if coding or not wishes.wants_binary(tensor.name))
        encode = functools.partial(_encode, answer, wishes, coding)
        self._perform(request, encode, self._answerer(request, answer.model_name), in_thread=size > _LARGE_BYTES)

    def refuse(self, request: messages.Request, error: border.InferenceError) -> None:
        """Answers with the error; the model that was asked for may be elsewhere by now."""
        response = messages.failure(error)
        response.close = request.inference is not None and self._engine.leaving(request.inference.model)
        request.answer(response)

    def _answerer(self, request: messages.Request, model: str) -> Callable[[messages.Response], None]:
        if not self._engine.leaving(model):
            return request.answer

        def answer(response: messages.Response) -> None:
            response.close = True
            request.answer(response)

        return answer

    def _perform(
        self, request: messages.Request, work: Callable[[], _T], then: Callable[[_T], None], *, in_thread: bool
    ) -> None:
        if in_thread:
            future = asyncio.get_running_loop().run_in_executor(self._threads, work)
            future.add_done_callback(lambda done: _settle(request, done.result, then))
        else:
            _settle(request, work, then)


class _Reply:
    """How the engine answers one request."""

    __slots__ = ("_answered", "_infer", "_request", "_shared_bytes", "_wishes")

    def __init__(self, infer: Infer, request: messages.Request, wishes: decoding.Wishes, shared_bytes: int) -> None:
        self._infer = infer
        self._shared_bytes = shared_bytes
        self._request = request
        self._wishes = wishes
        self._answered = False

    def __call__(self, answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
        if final:
            self._infer.finished(self._shared_bytes)
        if self._answered:
            return
        self._answered = True
        if isinstance(answer, border.InferenceError):
            self._infer.refuse(self._request, answer)
        elif not final:
            self._refuse_stream(answer.model_name)
        else:
            self._infer.respond(self._request, self._wishes, answer)

    def _refuse_stream(self, model: str) -> None:
        if self._request.inference is not None:
            self._request.inference.cancel()
        message = (
            f"HTTP doesn't support models with decoupled transaction policy, which '{model}' has; use gRPC streaming"
        )
        self._request.answer(messages.failure(border.InferenceError(border.ErrorKind.UNSUPPORTED, message)))


def _settle(request: messages.Request, result: Callable[[], _T], then: Callable[[_T], None]) -> None:
    """Passes the result on, or answers the request with what went wrong."""
    try:
        then(result())
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - every failure is told
        _fail(request, error)


def _fail(request: messages.Request, error: BaseException) -> None:
    if isinstance(error, border.InferenceError):
        response = messages.failure(error)
        if error.kind is border.ErrorKind.UNSUPPORTED and b"content-encoding" in request.headers:
            response.headers = _ENCODINGS
        request.answer(response)
    elif isinstance(error, OverflowError):
        request.answer(messages.refusal(413, "Request body exceeds --http-max-input-size once inflated"))
    elif isinstance(error, asyncio.CancelledError):
        request.answer(messages.refusal(503, wire_intake.STOPPING))
    else:
        log.error("http.infer_failed", exc_info=error)
        request.answer(messages.refusal(500, "Internal error; the server's log says more"))


def _encode(answer: border.InferResponse, wishes: decoding.Wishes, coding: str) -> messages.Response:
    response = encoding.encode(answer, wishes)
    if coding:
        response.parts = compression.deflate(response.parts, coding)
        response.headers += b"Content-Encoding: %b\r\n" % coding.encode()
    return response


def _json_bytes(request: messages.Request) -> int | None:
    """What Inference-Header-Content-Length says; None without it."""
    text = request.headers.get(b"inference-header-content-length")
    return None if text is None else _length(text)


@functools.lru_cache(maxsize=1024)
def _length(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise datatypes.refused(
            f"Inference-Header-Content-Length must be a non-negative integer, got '{text[:40].decode('latin-1')}'"
        )
    return int(text)
