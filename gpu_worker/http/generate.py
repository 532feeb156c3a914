"""The generate endpoints: one flat JSON answer, or a stream of server-sent events.

Decides when an answer is a plain error and when an event. Must never leave a request with the engine whose client has
gone or does not read, nor hold its answers without bound.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import orjson
import structlog

from gpu_worker.engine import border
from gpu_worker.http import decoding, generation, messages, routes, streams
from gpu_worker.wire import datatypes
from gpu_worker.wire import intake as wire_intake
from gpu_worker.wire import rules as wire_rules

log = structlog.get_logger(__name__)

EVENTS = b"text/event-stream; charset=utf-8"
_LARGE_BYTES = 2**20
_UNCACHED = b"Cache-Control: no-cache\r\n"


class Generate:
    """Handles generate requests."""

    def __init__(self, engine: border.Engine, intake: wire_intake.Intake, rules: wire_rules.Rules) -> None:
        self._engine = engine
        self._rules = rules
        self._intake = intake

    async def handle(self, request: messages.Request, route: routes.Route) -> None:
        """Submits; the answer comes later. Raises InferenceError for what is refused."""
        coding = request.headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        if coding != "identity":
            raise datatypes.refused(f"Unsupported content-encoding '{coding}', only 'identity' is supported")
        model = await self._model(route)
        asked = await self._asked(model, request)
        kind = _Events if route.endpoint is routes.Endpoint.GENERATE_STREAM else _One
        reply = kind(self._intake, request, route.model, leaving=functools.partial(self._engine.leaving, route.model))
        inference = border.InferRequest(
            route.model,
            route.version,
            asked.id,
            asked.inputs,
            [],
            self._rules.forwarding.add(asked.parameters, messages.texts(request.headers)),
            reply,
            received=messages.received(request, parent=self._rules.trace_context),
        )
        if request.gone:
            # Nobody hears it, but what is booked for the body is let go with the answer.
            request.answer(messages.refusal(503, wire_intake.STOPPING))
            return
        self._intake.submit(inference)
        request.inference = inference

    async def _model(self, route: routes.Route) -> generation.Model:
        metadata = await self._engine.model_metadata(route.model, route.version)
        return generation.Model(route.model, {each.name: each for each in metadata.inputs})

    async def _asked(self, model: generation.Model, request: messages.Request) -> generation.Asked:
        body, request.body = request.body, b""

        def read() -> generation.Asked:
            return generation.decode(model, decoding.parse(bytes(body)))

        return await asyncio.to_thread(read) if len(body) > _LARGE_BYTES else read()


class _Reply:
    """What both kinds of answers share."""

    def __init__(self, intake: wire_intake.Intake, request: messages.Request, model: str, *, leaving: Any) -> None:
        self._intake = intake
        self._request = request
        self._model = model
        self._leaving = leaving
        self._done = False

    def __call__(self, answer: border.InferResponse | border.InferenceError, *, final: bool = True) -> None:
        if final:
            self._intake.finished()
        if self._done:
            return
        if isinstance(answer, border.InferenceError):
            self._fail(answer.bare())
            return
        try:
            self.take(answer, final=final)
        except border.InferenceError as error:
            self._fail(error.bare())
        except Exception:
            log.exception("http.generate_failed")
            self._fail(border.InferenceError(border.ErrorKind.INTERNAL, "Internal error; the server's log says more"))
        else:
            self._done |= final

    def take(self, answer: border.InferResponse, *, final: bool) -> None:
        """Raises InferenceError for what the client is told instead."""
        raise NotImplementedError

    def tell(self, error: border.InferenceError) -> None:
        """The last that the client hears."""
        raise NotImplementedError

    def give_up(self) -> None:
        """No more is wanted from the engine."""
        self._done = True
        if self._request.inference is not None:
            self._request.inference.cancel()

    def _fail(self, error: border.InferenceError) -> None:
        self.give_up()
        self.tell(error)

    def answer(self, response: messages.Response) -> None:
        response.close = self._leaving()
        self._request.answer(response)


class _One(_Reply):
    """Exactly one response, told when it is certain that no other follows."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._found: border.InferResponse | None = None

    def take(self, answer: border.InferResponse, *, final: bool) -> None:
        if answer.outputs:
            if self._found is not None:
                raise self._wrong("more")
            self._found = answer
        if final:
            if self._found is None:
                raise self._wrong("none")
            self.answer(messages.Response(200, (generation.encode(self._found),), messages.JSON))

    def tell(self, error: border.InferenceError) -> None:
        self.answer(messages.failure(error))

    def _wrong(self, count: str) -> border.InferenceError:
        return border.InferenceError(
            border.ErrorKind.INTERNAL,
            f"generate expects model '{self._model}' to produce exactly 1 response, got {count}; use generate_stream",
        )


class _Events(_Reply):
    """Each response as an event; the first one decides between a plain error and a stream."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._stream: streams.Stream | None = None

    def take(self, answer: border.InferResponse, *, final: bool) -> None:
        event = _event(generation.encode(answer)) if answer.outputs else b""
        stream = self._begun()
        if event and not stream.push(event):
            raise border.InferenceError(
                border.ErrorKind.UNAVAILABLE,
                f"the client reads too slowly: more than {streams.MOST_BYTES} bytes of responses wait",
            )
        if final:
            stream.end()

    def tell(self, error: border.InferenceError) -> None:
        if self._stream is None:
            self.answer(messages.failure(error))
        else:
            self._stream.end(_event(orjson.dumps({"error": error.message})))

    def _begun(self) -> streams.Stream:
        if self._stream is None:
            self._stream = streams.Stream(self.give_up)
            self.answer(messages.Response(200, content_type=EVENTS, headers=_UNCACHED, stream=self._stream))
        return self._stream


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data
