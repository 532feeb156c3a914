"""generate and generate_stream over real sockets: a real model, and one of many responses whose answers a test gives."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from typing import Any

import pytest

from gpu_worker.engine import border
from gpu_worker.http import limits as http_limits
from gpu_worker.http import streams
from gpu_worker.wire import intake as wire_intake
from tests.support import scripted_engine
from tests.support.scripted_engine import text

EVENTS = "text/event-stream; charset=utf-8"


def post(path: str, body: Any, *headers: str, version: str = "1.1") -> bytes:
    raw = json.dumps(body).encode() if not isinstance(body, bytes) else body
    lines = [f"POST {path} HTTP/{version}", "Host: h", f"Content-Length: {len(raw)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def events(answer: Any) -> list[Any]:
    parts = answer.body.decode().split("\n\n")
    assert parts.pop() == ""
    return [json.loads(part.removeprefix("data: ")) for part in parts]


async def test_a_model_of_one_response_generates(serve: Any) -> None:
    client = await (await serve()).connect()
    body = {"id": "7", "INPUT": [1, 2, 3, 4], "timeout": 5}
    expected = {"model_name": "ident", "model_version": "1", "id": "7", "OUTPUT": [1.0, 2.0, 3.0, 4.0]}
    for path in ("/v2/models/ident/generate", "/v2/models/ident/versions/1/generate"):
        answer = await client.ask(post(path, body))
        assert (answer.status, answer.json()) == (200, expected)
    streamed = await client.ask(post("/v2/models/ident/generate_stream", body))
    assert (streamed.status, streamed.headers["content-type"], events(streamed)) == (200, EVENTS, [expected])
    assert streamed.headers["transfer-encoding"] == "chunked"
    assert (await client.ask(post("/v2/models/ident/generate", body))).status == 200


@pytest.mark.parametrize("way", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("model", "body", "headers", "status", "words"),
    [
        ("nope", {"INPUT": 1}, (), 404, "unknown model: 'nope'"),
        ("ident", {}, (), 400, "missing required input(s) ['INPUT']"),
        ("ident", {"INPUT": [1, 2, 3]}, (), 400, "3 elements do not fit input 'INPUT'"),
        ("ident", {"INPUT": ["a"] * 4}, (), 400, "INPUT"),
        ("ident", {"INPUT": [1, 2, 3, 4], "x": {}}, (), 400, "parameter 'x' has an invalid type"),
        ("ident", {"INPUT": [1, 2, 3, 4] * 9}, (), 400, "batch-size must be <= 4"),
        ("ident", b"{", (), 400, "failed to parse the request JSON buffer"),
        ("ident", b"", (), 400, "failed to parse the request JSON buffer"),
        ("ident", {"INPUT": [1, 2, 3, 4]}, ("Content-Encoding: gzip",), 400, "only 'identity' is supported"),
    ],
)
async def test_failures_before_the_first_response_are_plain(
    serve: Any, way: str, model: str, body: Any, headers: tuple[str, ...], status: int, words: str
) -> None:
    front = await serve()
    answer = await (await front.connect()).ask(post(f"/v2/models/{model}/{way}", body, *headers))
    assert answer.status == status
    assert words in shown(answer)["error"]
    assert answer.headers["content-type"] == "application/json"
    await front.intake.wait_idle()


@dataclasses.dataclass
class Scripted:
    """A front before an engine whose answers the test gives."""

    engine: scripted_engine.Scripted
    intake: wire_intake.Intake
    connect: Any


@pytest.fixture
async def scripted(serve: Any) -> Scripted:
    engine = scripted_engine.Scripted()
    front = await serve(http_limits.Limits(write_timeout_s=5.0), engine=engine)
    return Scripted(engine, front.intake, front.connect)


def shown(answer: Any) -> Any:
    return answer.json()


def prompt(way: str = "generate_stream", **more: Any) -> bytes:
    return post(f"/v2/models/many/{way}", {"PROMPT": "p", **more})


async def test_each_response_is_an_event_as_soon_as_it_is_there(scripted: Scripted) -> None:
    client = await scripted.connect()
    await client.send(prompt(id="9", top=3))
    request = await scripted.engine.next()
    assert (request.id, request.parameters) == ("9", {"top": 3})
    request.reply(text("a", identifier="9", tokens=1), final=False)
    async with asyncio.timeout(60):
        seen = await client.reader.readuntil(b"\n\n\r\n")
    assert b'"TEXT":"a"' in seen
    assert b'"tokens":1' in seen
    request.reply(text("b", "c", identifier="9"), final=False)
    request.reply(text(), final=True)
    async with asyncio.timeout(60):
        rest = await client.reader.readuntil(b"0\r\n\r\n")
    assert b'"TEXT":["b","c"]' in rest
    await scripted.intake.wait_idle()
    await client.send(prompt())
    (await scripted.engine.next()).reply(text("again"))
    (answer,) = await client.answers(1)
    assert [event["TEXT"] for event in events(answer)] == ["again"]


async def test_a_failure_after_the_first_response_is_an_event(scripted: Scripted) -> None:
    client = await scripted.connect()
    await client.send(prompt())
    request = await scripted.engine.next()
    request.reply(text("a"), final=False)
    request.reply(border.InferenceError(border.ErrorKind.INTERNAL, "broke"))
    (answer,) = await client.answers(1)
    assert answer.status == 200
    assert events(answer)[1:] == [{"error": "broke"}]
    await client.send(prompt())
    (await scripted.engine.next()).reply(border.InferenceError(border.ErrorKind.UNAVAILABLE, "full"))
    (answer,) = await client.answers(1)
    assert (answer.status, answer.json()) == (503, {"error": "full"})


async def test_an_answer_that_json_cannot_carry_is_told(scripted: Scripted) -> None:
    client = await scripted.connect()
    half = border.InferResponse("many", "1", "", [border.Tensor("TEXT", "FP16", (1,), bytes(2))])
    await client.send(prompt())
    request = await scripted.engine.next()
    request.reply(half, final=False)
    (answer,) = await client.answers(1)
    assert (answer.status, "FP16" in shown(answer)["error"], request.cancelled) == (400, True, True)
    request.reply(text("late"))
    await client.send(prompt("generate"))
    (await scripted.engine.next()).reply(half)
    (answer,) = await client.answers(1)
    assert answer.status == 400


async def test_a_stream_without_responses_is_empty(scripted: Scripted) -> None:
    client = await scripted.connect()
    await client.send(prompt())
    (await scripted.engine.next()).reply(text())
    (answer,) = await client.answers(1)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, EVENTS, b"")


@pytest.mark.parametrize(("count", "status"), [(0, 500), (1, 200), (2, 500)])
async def test_generate_wants_exactly_one_response(scripted: Scripted, count: int, status: int) -> None:
    client = await scripted.connect()
    await client.send(prompt("generate"))
    request = await scripted.engine.next()
    for number in range(count):
        request.reply(text(str(number)), final=False)
    request.reply(text())
    (answer,) = await client.answers(1)
    assert answer.status == status
    assert shown(answer).get("TEXT") == ("0" if count == 1 else None)
    assert request.cancelled == (count != 1)
    if count != 1:
        assert "exactly 1 response" in shown(answer)["error"]
    await scripted.intake.wait_idle()


async def test_a_client_that_goes_cancels_what_it_asked(scripted: Scripted) -> None:
    for first in (False, True):
        client = await scripted.connect()
        await client.send(prompt())
        request = await scripted.engine.next()
        gone = asyncio.Event()
        request.on_cancel = gone.set
        if first:
            request.reply(text("a"), final=False)
            async with asyncio.timeout(60):
                await client.reader.readuntil(b"\n\n")
        client.writer.transport.abort()
        async with asyncio.timeout(60):
            await gone.wait()
        assert request.cancelled
        request.reply(text("late"), final=False)
        request.reply(text("later"))
        await scripted.intake.wait_idle()


async def test_a_client_that_does_not_read_is_given_up(scripted: Scripted) -> None:
    client = await scripted.connect()
    client.writer.transport.pause_reading()
    await client.send(prompt())
    request = await scripted.engine.next()
    piece = "x" * 2**20
    for _ in range(2 * streams.MOST_BYTES // len(piece)):
        request.reply(text(piece), final=False)
    assert request.cancelled
    request.reply(text())
    client.writer.transport.resume_reading()
    (answer,) = await client.answers(1)
    told = events(answer)
    assert "reads too slowly" in told[-1]["error"]
    assert {event["TEXT"] for event in told[:-1]} == {piece}


async def test_requests_behind_a_stream_are_answered_after_it(scripted: Scripted) -> None:
    client = await scripted.connect()
    await client.send(prompt() + prompt("generate") + prompt())
    asked = [await scripted.engine.next() for _ in range(3)]
    asked[2].reply(text("third"))
    asked[1].reply(text("second"))
    asked[0].reply(text("first"), final=False)
    asked[0].reply(text())
    first, second, third = await client.answers(3)
    assert [events(first)[0]["TEXT"], shown(second)["TEXT"], events(third)[0]["TEXT"]] == ["first", "second", "third"]


async def test_a_client_of_http_1_0_gets_events_until_the_connection_ends(scripted: Scripted) -> None:
    client = await scripted.connect()
    await client.send(post("/v2/models/many/generate_stream", {"PROMPT": "p"}, version="1.0"))
    request = await scripted.engine.next()
    request.reply(text("a"), final=False)
    request.reply(text("b"))
    async with asyncio.timeout(60):
        raw = await client.reader.read()
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"Connection: close" in head
    assert [json.loads(each.removeprefix(b"data: "))["TEXT"] for each in body.split(b"\n\n")[:-1]] == ["a", "b"]


async def test_a_connection_that_is_to_end_ends_after_its_stream(scripted: Scripted) -> None:
    client = await scripted.connect()
    await client.send(post("/v2/models/many/generate_stream", {"PROMPT": "p"}, "Connection: close"))
    request = await scripted.engine.next()
    request.reply(text("a"))
    (answer,) = await client.answers(1)
    assert answer.headers["connection"] == "close"
    assert len(events(answer)) == 1
    with contextlib.suppress(ConnectionError):
        assert await client.ended()
