"""Sends a case's bytes to one server and takes what comes back, as it is. Compares nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import pathlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import grpc

from tests.conformance import case, servers

BROKEN = "breaks the connection"
"""The status of an answer that never came, since the connection ended before it."""

_WAIT_S = 60.0
_MOST_TRIES = 5000
_SHARED = pathlib.Path("/dev/shm")
_CLOSED = "Socket closed"
_COMPRESSION = {"": None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}


@dataclasses.dataclass(frozen=True)
class HttpAnswer:
    status: str
    headers: Mapping[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True)
class RpcAnswer:
    status: str
    details: str
    messages: tuple[bytes, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to all calls of a case, and what is in its shared memory after them."""

    calls: tuple[HttpAnswer | RpcAnswer, ...]
    shared: Mapping[str, bytes]


class Asker:
    """Asks one server; `ours` tells which twin of a call is for it."""

    def __init__(self, server: servers.Server, *, ours: bool) -> None:
        self._server = server
        self._ours = ours
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options)

    def close(self) -> None:
        self._channel.close()

    def broke(self, answers: Answers) -> bool:
        """Whether the server died of what it was asked."""
        return any(answer.status == BROKEN for answer in answers.calls) and self._server.died()

    def ask(self, asked: case.Case) -> Answers:
        with _objects(asked.shared):
            calls = tuple(self._settled(asked, call) for call in asked.calls)
            shared = {key: _path(key).read_bytes() for key in asked.shared}
            for call in asked.cleanup:
                self._repeat(call)
            return Answers(calls, shared)

    def _settled(self, asked: case.Case, call: case.Call) -> HttpAnswer | RpcAnswer:
        answer = self._call(call)
        tries = 0
        while call is asked.call and asked.settles not in _content(answer) and tries < _MOST_TRIES:
            answer = self._call(call)
            tries += 1
        return answer

    def _repeat(self, call: case.Call) -> None:
        """Until it succeeds: Triton refuses to let go of what a request has just used."""
        for _ in range(_MOST_TRIES):
            if self._call(call).status in {"200", "OK"}:
                return
        raise AssertionError(f"{call} never succeeds")

    def _call(self, call: case.Call) -> HttpAnswer | RpcAnswer:
        if isinstance(call, case.Twin):
            call = call.ours if self._ours else call.triton
        return self._http(call) if isinstance(call, case.Http) else self._rpc(call)

    def _http(self, call: case.Http) -> HttpAnswer:
        with socket.create_connection(("127.0.0.1", self._server.http_port), _WAIT_S) as connection:
            connection.sendall(call.data)
            answer = http.client.HTTPResponse(connection, method=call.data.split(b" ", 1)[0].decode())
            with contextlib.closing(answer):
                try:
                    answer.begin()
                    headers = {name.lower(): value for name, value in answer.getheaders()}
                    return HttpAnswer(str(answer.status), headers, answer.read())
                except (ConnectionError, http.client.IncompleteRead):
                    return HttpAnswer(BROKEN, {}, b"")

    def _rpc(self, call: case.Rpc) -> RpcAnswer:
        settings: dict[str, Any] = {
            "timeout": call.timeout_s,
            "metadata": call.metadata,
            "compression": _COMPRESSION[call.compression],
        }
        given = self._start(call, settings)
        messages: list[bytes] = []
        try:
            if call.cancel:
                given.cancel()
            messages += given if call.stream else [given.result()]
        except (grpc.RpcError, grpc.FutureCancelledError):
            pass
        details = given.details() or ""
        if _CLOSED in details:
            return RpcAnswer(BROKEN, "")
        return RpcAnswer(given.code().name, details, tuple(messages))

    def _start(self, call: case.Rpc, settings: dict[str, Any]) -> Any:
        # Without serialisers the bytes go as they are; the stubs want messages.
        channel: Any = self._channel
        if call.stream:
            return channel.stream_stream(call.method)(iter(call.messages), **settings)
        return channel.unary_unary(call.method).future(call.messages[0], **settings)


def _content(answer: HttpAnswer | RpcAnswer) -> bytes:
    return answer.body if isinstance(answer, HttpAnswer) else b"".join(answer.messages)


@contextlib.contextmanager
def _objects(contents: Mapping[str, bytes]) -> Iterator[None]:
    try:
        for key, content in contents.items():
            _path(key).write_bytes(content)
        yield
    finally:
        for key in contents:
            _path(key).unlink(missing_ok=True)


def _path(key: str) -> pathlib.Path:
    return _SHARED / key.lstrip("/")
