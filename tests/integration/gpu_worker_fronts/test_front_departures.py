"""Long-lived clients go elsewhere without a failed request: connections age, models leave, workers stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gpu_worker.http import limits as http_limits
from tests.support.way import Way

from .conftest import Front, Launch, Serve

PATIENCE_S = 60
LOAD = pathlib.Path(__file__).with_name("triton_load.py")
ASKED = {"inputs": [{"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}

WAYS = pytest.mark.parametrize(("kind", "frontend"), [("http", "native"), ("grpc", "native"), ("grpc", "grpcio")])


@dataclasses.dataclass
class Load:
    """The client process."""

    process: asyncio.subprocess.Process

    async def end(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            said, _ = await self.process.communicate(b"")
        found: dict[str, Any] = json.loads(said)
        return found


@contextlib.asynccontextmanager
async def load(kind: str, port: int) -> AsyncIterator[Load]:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, str(LOAD), kind, str(port))
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield Load(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.slow  # a whole worker and a whole client start
@WAYS
@pytest.mark.parametrize("frontends", [1, 2])
async def test_no_request_fails_while_connections_age(kind: str, launch: Launch) -> None:
    worker = await launch("--http-max-connection-age-secs=0.1", "--grpc-max-connection-age=100")
    async with Way().open() as way, load(kind, way.port) as clients:
        way.target = worker.ports[kind]
        await way.has_taken(20)
        seen = await clients.end()
    assert seen["answered"] > 20
    assert seen["met"] == {}


@pytest.mark.slow  # whole workers and a whole client start
@WAYS
@pytest.mark.parametrize("frontends", [1, 2])
async def test_no_request_fails_while_a_worker_stops_that_nobody_is_led_to(kind: str, launch: Launch) -> None:
    old = await launch("--grpc-max-connection-age=300")
    new = await launch("--grpc-max-connection-age=300")
    async with Way().open() as way, load(kind, way.port) as clients:
        way.target = old.ports[kind]
        await way.has_taken(4 if kind == "http" else 1)
        way.target = new.ports[kind]
        before = way.taken
        old.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(old.wait) == 0
        await way.has_taken(before + 1)
        seen = await clients.end()
    assert seen["answered"] > 0
    assert seen["met"] == {}
    assert '"drained": true' in old.log()


def infer(model: str = "ident") -> bytes:
    body = json.dumps(ASKED).encode()
    return b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (
        model.encode(),
        len(body),
        body,
    )


def post(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n".encode()


async def test_a_connection_that_is_old_ends_with_its_next_answer(serve: Serve) -> None:
    front: Front = await serve(http_limits.Limits(age_s=1e-6))
    client = await front.connect()
    answer = await client.ask(infer())
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await client.ended()


async def test_a_young_connection_is_kept(serve: Serve) -> None:
    front: Front = await serve(http_limits.Limits(age_s=1000))
    client = await front.connect()
    for _ in range(3):
        assert "connection" not in (await client.ask(infer())).headers


async def test_ages_are_spread() -> None:
    ages = {http_limits.Limits(age_s=10).one_age_s() for _ in range(100)}
    assert len(ages) > 50
    assert all(9 <= age <= 11 for age in ages)


async def test_a_model_that_leaves_serves_and_sends_its_clients_away(serve: Serve) -> None:
    front: Front = await serve()
    control, idle, going, staying = [await front.connect() for _ in range(4)]
    for client, model in ((idle, "ident"), (going, "ident"), (staying, "text")):
        assert "connection" not in (await client.ask(infer(model))).headers
    assert (await control.ask(post("/v2/repository/models/ident/leave"))).status == 200

    answer = await going.ask(infer())
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    # Who asks nothing hears nothing: its connection ends.
    assert await idle.ended()
    assert "connection" not in (await staying.ask(infer("text"))).headers

    assert (await control.ask(post("/v2/repository/models/ident/load"))).status == 200
    again = await front.connect()
    assert "connection" not in (await again.ask(infer())).headers


async def test_when_a_model_goes_its_last_answers_and_refusals_end_the_connection(serve: Serve) -> None:
    front: Front = await serve()
    control, client, late = [await front.connect() for _ in range(3)]
    await client.send(infer("slow"))
    assert (await control.ask(post("/v2/repository/models/slow/unload"))).status == 200
    (answer,) = await client.answers(1)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    refused = await late.ask(infer("slow"))
    assert (refused.status, refused.headers["connection"]) == (404, "close")


async def test_all_clients_are_sent_away_and_answered_meanwhile(serve: Serve) -> None:
    front: Front = await serve()
    control, client = [await front.connect() for _ in range(2)]
    assert (await control.ask(post("/v2/repository/leave"))).status == 200
    for model in ("ident", "slow"):
        each = await front.connect()
        answer = await each.ask(infer(model))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert (await client.ask(infer())).headers["connection"] == "close"


async def test_a_name_that_nobody_loaded_cannot_leave(serve: Serve) -> None:
    front: Front = await serve()
    client = await front.connect()
    assert (await client.ask(post("/v2/repository/models/nope/leave"))).status == 200
    assert not front.engine.leaving("nope")
