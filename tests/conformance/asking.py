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

_WAIT_S = 60.0
_SHARED = pathlib.Path("/dev/shm")
_COMPRESSION = {"": None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}


@dataclasses.dataclass(frozen=True)
class HttpAnswer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True)
class RpcAnswer:
    code: str
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

    def ask(self, asked: case.Case) -> Answers:
        with _objects(asked.shared):
            calls = tuple(self._call(call) for call in asked.calls)
            return Answers(calls, {key: _path(key).read_bytes() for key in asked.shared})

    def _call(self, call: case.Call) -> HttpAnswer | RpcAnswer:
        if isinstance(call, case.Twin):
            call = call.ours if self._ours else call.triton
        return self._http(call) if isinstance(call, case.Http) else self._rpc(call)

    def _http(self, call: case.Http) -> HttpAnswer:
        with socket.create_connection(("127.0.0.1", self._server.http_port), _WAIT_S) as connection:
            connection.sendall(call.data)
            answer = http.client.HTTPResponse(connection, method=call.data.split(b" ", 1)[0].decode())
            with contextlib.closing(answer):
                answer.begin()
                headers = {name.lower(): value for name, value in answer.getheaders()}
                return HttpAnswer(answer.status, headers, answer.read())

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
        return RpcAnswer(given.code().name, given.details() or "", tuple(messages))

    def _start(self, call: case.Rpc, settings: dict[str, Any]) -> Any:
        # Without serialisers the bytes go as they are; the stubs want messages.
        channel: Any = self._channel
        if call.stream:
            return channel.stream_stream(call.method)(iter(call.messages), **settings)
        return channel.unary_unary(call.method).future(call.messages[0], **settings)


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
