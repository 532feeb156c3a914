"""The HTTP front over real sockets: order, limits, timeouts, half-closed and vanished clients."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import socket
import struct
import zlib
from typing import Any

import pytest

from gpu_worker.engine import border
from gpu_worker.http import exchange
from gpu_worker.http import limits as http_limits
from gpu_worker.wire import intake as wire_intake

OCTETS = "application/octet-stream"
GOOD = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n"


def request(verb: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{verb} {path} HTTP/1.1", "Host: h", *headers]
    if body or verb == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def infer_body(identifier: str = "", model_input: Any = (1, 2, 3, 4), **extra: Any) -> bytes:
    tensor = {"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "data": list(model_input)}
    return json.dumps({"id": identifier, "inputs": [tensor], **extra}).encode()


def infer(identifier: str = "", model: str = "ident", *headers: str) -> bytes:
    return request("POST", f"/v2/models/{model}/infer", infer_body(identifier), *headers)


async def test_pipelined_requests_are_answered_in_order(serve: Any) -> None:
    client = await (await serve()).connect()
    asked = [infer("0", "slow"), *(infer(str(index)) for index in range(1, 40))]
    asked.insert(20, request("GET", "/v2/models/ident"))
    await client.send(b"".join(asked))
    answers = await client.answers(len(asked))
    shown: list[Any] = [answer.json() for answer in answers]
    assert [one.get("id", one.get("name")) for one in shown] == [
        *map(str, range(20)),
        "ident",
        *map(str, range(20, 40)),
    ]
    assert {answer.status for answer in answers} == {200}


async def test_a_client_that_reads_nothing_is_not_read_from_and_loses_nothing(serve: Any) -> None:
    client = await (await serve()).connect()
    count = 20_000
    sending = asyncio.create_task(client.send(request("GET", "/v2") * count))
    answers = await client.answers(count)
    await sending
    assert len(answers) == count
    assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nBad Header\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n" + b"A: b\r\nC: d\r\n" * 200 + b"\r\n", 200),
        (b"GET /v2 HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % index for index in range(200)) + b"\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"POST /v2 HTTP/1.1\r\nExpect: tea\r\nContent-Length: 1\r\n\r\n", 417),
    ],
)
async def test_bad_heads_are_told_and_end_the_connection(serve: Any, raw: bytes, status: int) -> None:
    client = await (await serve()).connect()
    answer = await client.ask(raw)
    assert answer.status == status
    if status != 200:
        assert isinstance(answer.json()["error"], str)
        assert answer.headers["connection"] == "close"
        assert await client.ended()


async def test_a_header_without_end_is_stopped(serve: Any) -> None:
    client = await (await serve()).connect()
    await client.send(b"GET /v2 HTTP/1.1\r\nA: ")
    sending = asyncio.create_task(client.send(b"x" * 2**22))
    (answer,) = await client.answers(1)
    assert answer.status == 431
    assert await client.ended()
    await asyncio.gather(sending, return_exceptions=True)


async def test_declared_and_chunked_bodies_beyond_the_limit_are_413(serve: Any) -> None:
    front = await serve(http_limits.Limits(body_bytes=1000))
    declared = await (await front.connect()).ask(b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 1001\r\n\r\n")
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = await (await front.connect()).ask(head + b"1f4\r\n" + bytes(500) + b"\r\n1f5\r\n" + bytes(501) + b"\r\n")
    packed = request("POST", "/v2/models/m/infer", gzip.compress(bytes(1001)), "Content-Encoding: gzip")
    inflated = await (await front.connect()).ask(packed)
    assert [declared.status, chunked.status, inflated.status] == [413, 413, 413]
    assert "--http-max-input-size" in declared.json()["error"]


async def test_chunked_bodies_work(serve: Any) -> None:
    client = await (await serve()).connect()
    body = infer_body("7")
    chunks = b"".join(b"%x;e=1\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:]))
    head = b"POST /v2/models/ident/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await client.ask(head + chunks + b"0\r\nTrailer: x\r\n\r\n")
    assert answer.json()["id"] == "7"


async def test_continue_is_said_only_to_who_may_go_on(serve: Any) -> None:
    front = await serve(http_limits.Limits(body_bytes=1000))
    client = await front.connect()
    body = infer_body("7")
    head = "POST /v2/models/ident/infer HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    await client.send((head % len(body)).encode())
    async with asyncio.timeout(60):
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await client.ask(body)).status == 200
    assert (await (await front.connect()).ask((head % 1001).encode())).status == 413


async def test_slow_heads_and_bodies_are_told_408_and_idle_connections_closed(serve: Any) -> None:
    front = await serve(http_limits.Limits(head_timeout_s=0.05, body_timeout_s=0.05, idle_timeout_s=0.05))
    head, body, idle = [await front.connect() for _ in range(3)]
    await head.send(b"GET /v2 HT")
    await body.send(b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 9\r\n\r\nab")
    for client in (head, body):
        (answer,) = await client.answers(1)
        assert answer.status == 408
        assert await client.ended()
    assert await idle.ended()


async def test_a_client_that_never_reads_is_given_up(serve: Any) -> None:
    front = await serve(http_limits.Limits(write_timeout_s=0.05))
    client = await front.connect()
    client.writer.write(request("GET", "/v2/models/stats") * 200_000)
    async with asyncio.timeout(60):
        await front.http._empty.wait()
    assert front.intake._held_bytes == 0


async def test_a_half_closed_client_gets_its_answers(serve: Any) -> None:
    client = await (await serve()).connect()
    await client.send(infer("0", "slow") + infer("1") + b"GET /v2 HT")
    client.writer.write_eof()
    answers = await client.answers(3)
    assert [answer.json()["id"] for answer in answers] == ["0", "1"]
    assert await client.ended()


async def test_a_vanished_client_cancels_what_waits(serve: Any) -> None:
    front, many = await serve(), 24
    gone, other = await front.connect(), await front.connect()
    await gone.send(infer("0", "slow") * many)
    while front.intake._in_flight < many:
        await other.ask(GOOD)
    linger = struct.pack("ii", 1, 0)
    gone.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    gone.writer.transport.abort()
    await front.intake.wait_idle()
    cancelled = done = 0
    async with asyncio.timeout(60):
        while cancelled + done < many:  # an answer may come before its count
            assert (await other.ask(GOOD)).status == 200
            (statistics,) = await front.engine.statistics("slow", "")
            cancelled, done = statistics.failures["CANCELED"], statistics.success.count
    assert cancelled > many // 2
    assert front.intake._held_bytes == 0


async def test_http_1_0_and_close_end_the_connection(serve: Any) -> None:
    front = await serve()
    for raw in (b"GET /v2 HTTP/1.0\r\n\r\n", b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n"):
        client = await front.connect()
        answer = await client.ask(raw)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.ended()
    client = await front.connect()
    for _ in range(2):
        answer = await client.ask(b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.headers["connection"] == "keep-alive"


async def test_an_upgrade_is_not_taken(serve: Any) -> None:
    client = await (await serve()).connect()
    answer = await client.ask(b"GET /v2 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert answer.status == 200
    assert await client.ended()


@pytest.mark.parametrize(
    ("verb", "path", "status", "error"),
    [
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/", 404, "Not Found"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("GET", "/v2/models/ident/infer", 405, "Method Not Allowed"),
        ("DELETE", "/v2/logging", 405, "Method Not Allowed"),
        ("GET", "/v2/models/ident/versions/x", 404, "Not Found"),
        ("GET", "/v2/models/nope", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/ident/versions/9", 404, "version 9"),
        ("GET", "/v2/models/nope/ready", 400, "Model version not ready"),
        ("GET", "/v2/models/nope/stats", 400, "requested model 'nope' is not available"),
        ("GET", "/v2/models/nope/trace/setting", 400, "Request for unknown model : nope"),
        ("GET", "/v2/models/ident/generate", 405, "Method Not Allowed"),
        ("POST", "/v2/repository/mine/index", 501, "repository"),
        ("POST", "/v2/repository/models/nope/load", 500, "failed to load 'nope'"),
    ],
)
async def test_errors_are_json_with_their_status(serve: Any, verb: str, path: str, status: int, error: str) -> None:
    client = await (await serve()).connect()
    answer = await client.ask(request(verb, path))
    assert answer.status == status
    assert error in answer.json()["error"]
    assert (await client.ask(GOOD)).status == 200


async def test_head_is_refused_without_a_body(serve: Any) -> None:
    client = await (await serve()).connect()
    await client.send(request("HEAD", "/v2") + GOOD)
    async with asyncio.timeout(60):
        first = await client.reader.readuntil(b"\r\n\r\n")
        second = await client.reader.readuntil(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 405 ")
    assert second.startswith(b"HTTP/1.1 200 ")


async def test_views_of_server_model_config_and_index(serve: Any) -> None:
    client = await (await serve()).connect()
    server = (await client.ask(request("GET", "/v2"))).json()
    assert "statistics" in server["extensions"]
    model = (await client.ask(request("GET", "/v2/models/ident"))).json()
    assert model["inputs"] == [{"name": "INPUT", "datatype": "FP32", "shape": [-1, 4]}]
    config = (await client.ask(request("GET", "/v2/models/ident/config"))).json()
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["input"][0]["dims"] == [4]
    assert isinstance(config["dynamic_batching"]["max_queue_delay_microseconds"], int)
    index = (await client.ask(request("POST", "/v2/repository/index"))).json()
    assert {"name": "addsub"} in index
    assert {"name": "ident", "version": "1", "state": "READY"} in index
    ready = (await client.ask(request("POST", "/v2/repository/index", b'{"ready": true}'))).json()
    assert {entry["name"] for entry in ready} == {"ident", "text", "slow"}


async def test_models_are_loaded_and_unloaded(serve: Any) -> None:
    client = await (await serve()).connect()
    loaded = await client.ask(request("POST", "/v2/repository/models/addsub/load", b"{}"))
    assert (loaded.status, loaded.body) == (200, b"")
    assert (await client.ask(request("GET", "/v2/models/addsub/ready"))).status == 200
    unloaded = await client.ask(
        request("POST", "/v2/repository/models/addsub/unload", b'{"parameters": {"unload_dependents": false}}')
    )
    assert unloaded.status == 200
    assert (await client.ask(request("GET", "/v2/models/addsub/ready"))).status == 400
    bad = request("POST", "/v2/repository/models/addsub/load", b'{"parameters": {"file:1/model.onnx": "%"}}')
    assert "base64" in (await client.ask(bad)).json()["error"]


async def test_raw_binary_requests(serve: Any) -> None:
    client = await (await serve()).connect()
    data = struct.pack("<4f", 1, 2, 3, 4)
    answer = await client.ask(request("POST", "/v2/models/ident/infer", data, "Inference-Header-Content-Length: 0"))
    length = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == OCTETS
    assert answer.body[length:] == data
    empty = await client.ask(request("POST", "/v2/models/ident/infer"))
    assert empty.status == 400
    assert "byte size" in empty.json()["error"]


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_bodies_are_compressed_both_ways(serve: Any, coding: str, pack: Any) -> None:
    client = await (await serve()).connect()
    wishes = (f"Content-Encoding: {coding}", f"Accept-Encoding: br, {coding}")
    answer = await client.ask(request("POST", "/v2/models/ident/infer", pack(infer_body("7")), *wishes))
    assert answer.headers["content-encoding"] == coding
    plain = gzip.decompress(answer.body) if coding == "gzip" else zlib.decompress(answer.body)
    assert json.loads(plain)["id"] == "7"


async def test_an_unknown_coding_is_501_and_names_the_known(serve: Any) -> None:
    client = await (await serve()).connect()
    answer = await client.ask(request("POST", "/v2/models/ident/infer", b"x", "Content-Encoding: br"))
    assert (answer.status, answer.headers["accept-encoding"]) == (501, "gzip, deflate")


async def test_large_json_is_decoded_beside_the_event_loop(serve: Any) -> None:
    client = await (await serve()).connect()
    text = "x" * 2**21
    tensor = {"name": "INPUT", "shape": [1, 4], "datatype": "BYTES", "data": [text, "", "é", "y"]}
    answer = await client.ask(request("POST", "/v2/models/text/infer", json.dumps({"inputs": [tensor]}).encode()))
    assert answer.json()["outputs"][0]["data"] == [text, "", "é", "y"]


async def test_bad_header_lengths_are_400(serve: Any) -> None:
    client = await (await serve()).connect()
    for length in ("-1", "x", "9999", "9" * 30):
        headers = f"Inference-Header-Content-Length: {length}"
        answer = await client.ask(request("POST", "/v2/models/ident/infer", infer_body(), headers))
        assert answer.status == 400
        assert "Inference-Header-Content-Length" in answer.json()["error"]


async def test_too_much_in_flight_is_503(serve: Any) -> None:
    front = await serve(bounds=wire_intake.Bounds(requests=1))
    client = await front.connect()
    await client.send(infer("0", "slow") + infer("1"))
    first, second = await client.answers(2)
    assert (first.status, second.status) == (200, 503)


async def test_too_many_connections_are_503(serve: Any) -> None:
    front = await serve(http_limits.Limits(connections=1))
    first, second = await front.connect(), await front.connect()
    (refused,) = await second.answers(1)
    assert refused.status == 503
    assert (await first.ask(GOOD)).status == 200


async def test_draining_ends_connections_with_their_answer(serve: Any) -> None:
    front = await serve()
    busy, idle = await front.connect(), await front.connect()
    assert (await idle.ask(GOOD)).status == 200
    await busy.send(infer("0", "slow"))
    while not front.intake._in_flight:
        assert (await idle.ask(GOOD)).status == 200
    front.intake.stop()
    front.http.drain()
    late = await idle.ask(infer("1"))
    assert (late.status, late.headers["connection"]) == (503, "close")
    assert "Server is stopping" in late.json()["error"]
    (answer,) = await busy.answers(1)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    with pytest.raises(ConnectionRefusedError):
        await front.connect()


async def test_requests_are_freed_without_a_search_for_garbage(serve: Any) -> None:
    front = await serve()
    client, leaving = await front.connect(), await front.connect()
    gc.collect()
    gc.disable()
    try:
        for asked in (
            infer("0"),
            infer("1", "nowhere"),
            request("POST", "/v2/models/ident/infer", b"{"),
            b"bad\r\n\r\n",
        ):
            await client.send(asked)
            await client.answers(1)
        await leaving.send(infer("2")[:-1])
        leaving.writer.close()
        other = await front.connect()
        async with asyncio.timeout(60):
            # The thread that ran the model may be a moment behind.
            while any(type(each) in (exchange.Exchange, border.InferRequest) for each in gc.get_objects()):
                await other.ask(GOOD)
    finally:
        gc.enable()
