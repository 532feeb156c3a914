"""One HTTP/1.1 request to the worker and its whole answer, on a connection of its own.

Must never hold more than a bounded answer. Callers bound the time.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping

import httptools

_MOST_BYTES = 4 << 20
_PIECE_BYTES = 1 << 16

FAILURES = (OSError, TimeoutError, EOFError, httptools.HttpParserError)
"""What a call may raise: nobody there, too late, cut short or too long, not HTTP."""


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """Whom to ask what; `path` begins with a slash and is quoted already."""

    host: str
    port: int
    path: str
    method: str = "GET"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


async def perform(call: Call) -> tuple[int, bytes]:
    """Status and body."""
    reader, writer = await asyncio.open_connection(call.host, call.port)
    try:
        writer.write(_head(call))
        return await _answer(reader)
    finally:
        writer.close()


def _head(call: Call) -> bytes:
    shown = f"[{call.host}]" if ":" in call.host else call.host
    fields = {"Host": f"{shown}:{call.port}", "Connection": "close", "Content-Length": "0", **call.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{call.method} {call.path} HTTP/1.1\r\n{lines}\r\n".encode()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    while not answer.whole:
        piece = await reader.read(_PIECE_BYTES)
        if not piece or len(answer.body) > _MOST_BYTES:
            raise EOFError("an answer without an end")
        parser.feed_data(piece)
    return parser.get_status_code(), bytes(answer.body)


class _Answer:
    """Gathers one answer."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.whole = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True
