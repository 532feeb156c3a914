"""A closed-loop load generator: so many requests in flight, each answer sends the next, for a bounded time.

Run as a process of its own, ``python -m benchmarks.load``; prints one JSON line. HTTP requests are made once and sent over
raw sockets, one a connection; gRPC goes through grpc.aio, whose own cost is part of what it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
import time
from typing import cast

import grpc
import uvloop

from protos.inference.v2 import predict_pb2, predict_pb2_grpc

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class HttpConnection(asyncio.Protocol):
    """Sends the same request again as soon as its answer is whole."""

    def __init__(self, request: bytes, end_s: float, latencies_s: list[float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._end_s, self._latencies_s = request, end_s, latencies_s
        self._received, self._sent_s = bytearray(), 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        length = LENGTH.search(self._received, 0, head)
        if len(self._received) < head + 4 + (int(length.group(1)) if length else 0):
            return
        if not self._received.startswith(b"HTTP/1.1 200"):
            self._fail(RuntimeError(bytes(self._received[:300]).decode(errors="replace")))
            return
        now = time.perf_counter()
        self._latencies_s.append(now - self._sent_s)
        self._received.clear()
        self._send() if now < self._end_s else self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the server closed the connection"))

    def _send(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def _finish(self) -> None:
        self.done.set_result(None)
        self._transport.close()

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self._transport.close()


async def http(address: str, request: bytes, concurrency: int, seconds: float) -> list[float]:
    """Latencies in seconds of all requests that ended in time."""
    host, port = address.rsplit(":", 1)
    latencies_s: list[float] = []
    end_s = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    opened = [
        (await loop.create_connection(lambda: HttpConnection(request, end_s, latencies_s), host, int(port)))[1]
        for _ in range(concurrency)
    ]
    await asyncio.gather(*(connection.done for connection in opened))
    return latencies_s


async def grpc_unary(address: str, request: bytes, concurrency: int, seconds: float) -> list[float]:
    """Latencies in seconds; four channels, as one HTTP/2 connection limits the client."""
    message = predict_pb2.ModelInferRequest.FromString(request)
    latencies_s: list[float] = []
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(min(4, concurrency))]
    end_s = time.perf_counter() + seconds

    async def one(number: int) -> None:
        call = predict_pb2_grpc.GRPCInferenceServiceStub(channels[number % len(channels)]).ModelInfer
        while (begun := time.perf_counter()) < end_s:
            await call(message)
            latencies_s.append(time.perf_counter() - begun)

    await asyncio.gather(*(one(number) for number in range(concurrency)))
    await asyncio.gather(*(channel.close() for channel in channels))
    return latencies_s


def main() -> None:
    """Prints requests, rate and percentiles of one run; a short warm-up goes first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("protocol", choices=["http", "grpc"])
    parser.add_argument("address")
    parser.add_argument("--request", required=True, help="base64 of the HTTP request, or of the ModelInferRequest")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    request = base64.b64decode(options.request)
    send = http if options.protocol == "http" else grpc_unary
    uvloop.run(send(options.address, request, options.concurrency, 0.3))
    begun = time.perf_counter()
    latencies_s = sorted(uvloop.run(send(options.address, request, options.concurrency, options.seconds)))
    rate = len(latencies_s) / (time.perf_counter() - begun)
    p50, p99 = (latencies_s[int(len(latencies_s) * share)] * 1e3 for share in (0.5, 0.99))
    print(json.dumps({"requests": len(latencies_s), "per_s": rate, "p50_ms": p50, "p99_ms": p99}))


if __name__ == "__main__":
    main()
