"""Bytes into one HTTP/1.1 connection: the same requests however they are cut, whole answers, nothing left behind."""

from __future__ import annotations

import asyncio
from typing import Any

from gpu_worker.http import limits as http_limits
from tests.support import http_bench

NAME = "http1"
_LIMITS = http_limits.Limits(body_bytes=2**10, head_bytes=2**10, headers=10, pipelined=3)
_STATUSES = {200, 400, 408, 413, 417, 431, 503}
_CONTINUE = 100
_LOOP = asyncio.new_event_loop()


def fuzz(data: bytes) -> None:
    """The first byte says how long the pieces are, and whether answers come at once."""
    how, data = (data[0], data[1:]) if data else (0, b"")
    whole = _LOOP.run_until_complete(_outcome(how, data, len(data) or 1))
    cut = _LOOP.run_until_complete(_outcome(how, data, (how >> 2) + 1))
    assert whole == cut, f"{whole}\n{cut}"


async def _outcome(how: int, data: bytes, size: int) -> Any:
    bench = http_bench.Bench(_LIMITS)
    bench.app.at_once = bool(how & 1)
    for at in range(0, len(data), size):
        bench.connection.data_received(data[at : at + size])
        if not bench.app.at_once and how & 2:
            _reply(bench)
    _reply(bench)
    bench.connection.eof_received()
    _reply(bench)
    assert bench.intake._held_bytes == 0
    bench.connection.connection_lost(None)
    asked = [(each.method, each.target, dict(each.headers)) for each in bench.app.asked]
    answers = http_bench.Answers(bytes(bench.wire.written))
    told = [pair for pair in zip(answers.statuses, answers.bodies, strict=True) if pair[0] != _CONTINUE]
    assert {status for status, _ in told} <= _STATUSES, told
    assert len(asked) <= len(told) <= len(asked) + 1
    # Why something is no HTTP is told in the parser's words, which depend on where the bytes were cut.
    return asked, [status for status, _ in told], [body for _, body in told[: len(asked)]]


def _reply(bench: http_bench.Bench) -> None:
    for request in bench.app.asked:  # grows while it is walked
        bench.app.reply(request)


def seeds() -> list[bytes]:
    post = b"POST /e HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
    chunked = b"POST /e HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\nT: v\r\n\r\n"
    texts = [
        post + post.replace(b"abc", b"xyz").replace(b"POST", b"PUT"),
        chunked + post,
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" + post,
        post.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
        post.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        post.replace(b"Content-Length: 3", b"Content-Length: 3\r\nContent-Length: 4"),
        b"GET /alone HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + post,
        b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"GET http://h/a?b HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        post.replace(b"Host: h", b"Host: h\r\nX:" + b" y" * 40)
        + post.replace(b"Host: h", b"Host: h\r\nX:" + b" z" * 40),
    ]
    return [bytes([how]) + text for text in texts for how in (0, 1, 0x1E)]
