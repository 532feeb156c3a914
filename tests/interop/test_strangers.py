"""What clients get from the own gRPC front that speak HTTP/2, but not gRPC; asked through the library h2."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator, Iterator

import h2.connection
import h2.events
import pytest

from tests.support import worker_process

WIDE_S = 60.0


class Client:
    """One connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._state = h2.connection.H2Connection()
        self._state.initiate_connection()

    async def ask(
        self, method: str, *more: tuple[str, str], body_bytes: int = 0, whole: bool = True
    ) -> tuple[dict[bytes, bytes], bytes]:
        """The answer's headers and body; unless `whole`, the request never ends."""
        stream = self._state.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":path", "/"), (":authority", "h"), *more]
        self._state.send_headers(stream, head, end_stream=whole and not body_bytes)
        for at in range(0, body_bytes, 2**14):
            size = min(2**14, body_bytes - at)
            self._state.send_data(stream, bytes(size), end_stream=whole and at + size == body_bytes)
        headers: dict[bytes, bytes] = {}
        body = b""
        async with asyncio.timeout(WIDE_S):
            while True:
                for event in await self._events():
                    if isinstance(event, h2.events.ResponseReceived):
                        headers = dict(event.headers)
                    elif isinstance(event, h2.events.DataReceived):
                        body += event.data
                    elif isinstance(event, h2.events.StreamEnded):
                        return headers, body

    async def _events(self) -> list[h2.events.Event]:
        self._writer.write(self._state.data_to_send())
        data = await self._reader.read(2**16)
        assert data, "the server ended the connection"
        return self._state.receive_data(data)


@pytest.fixture(scope="module")
def port(repository: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("strangers") / "worker"
    with worker_process.running(repository, folder, "--grpc-frontend=native") as worker:
        yield worker.ports["grpc"]


@pytest.fixture
async def client(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield Client(reader, writer)
    writer.close()


async def test_other_methods_than_post_are_told_what_this_port_speaks(client: Client) -> None:
    headers, body = await client.ask("GET")
    assert (headers[b":status"], headers[b"allow"]) == (b"405", b"POST")
    assert body == b"This port speaks gRPC: the method must be POST\n"
    assert headers[b"content-length"] == b"%d" % len(body)
    headers, body = await client.ask("HEAD")
    assert (headers[b":status"], body) == (b"405", b"")


@pytest.mark.parametrize("content", [(), (("content-type", "application/json"),)])
async def test_other_content_is_told_what_is_expected(client: Client, content: tuple[tuple[str, str], ...]) -> None:
    for size in (0, 1, 2**15):
        headers, body = await client.ask("POST", *content, body_bytes=size)
        assert headers[b":status"] == b"415"
        assert body == b"This port speaks gRPC: content-type must be application/grpc\n"


async def test_a_long_request_is_answered_before_its_end(client: Client) -> None:
    headers, _body = await client.ask("POST", body_bytes=2**15 + 1, whole=False)
    assert headers[b":status"] == b"415"
