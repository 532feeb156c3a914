"""The sidecar's end of the stream to the control plane.

Decides when to connect, when to report and when to give up: it comes back with jittered, capped backoff and says Hello
again; it reports at the interval and at once when something changed; it ends when the server does not want this worker.
A report is built only when it can be sent, so nothing queues. Must never act on a message itself, nor log the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator
from typing import Protocol

import grpc
import structlog

from protos.tms.v1 import agent_pb2, agent_pb2_grpc
from sidecar import backoff, errors

log = structlog.get_logger()

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.enable_http_proxy", 0),
    # A server whose machine died sends no word; pings find out.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class Agent(Protocol):
    """Who acts on what is desired, and tells what came of it."""

    changed: asyncio.Event
    """Set when a report should go out at once."""

    def hello(self) -> agent_pb2.Hello: ...

    def accept(self, desired: agent_pb2.Desired) -> None: ...

    async def report(self) -> agent_pb2.Report: ...

    def reported(self, sent: agent_pb2.Report) -> None:
        """The report was handed to the stream."""
        ...

    def report_interval_s(self) -> float: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """How to reach the server. The files are read at each connection, so that they may be renewed."""

    target: str
    worker_id: str
    token_file: pathlib.Path
    ca: pathlib.Path | None = None
    cert: pathlib.Path | None = None
    key: pathlib.Path | None = None
    replica_id: str = ""


async def follow(link: Link, agent: Agent, stop: asyncio.Event) -> None:
    """Keeps the stream up until `stop`. Raises Unwanted when the server says so."""
    delays = backoff.Backoff(0.2, 10.0)
    while not stop.is_set():
        try:
            await _session(link, agent, delays)
            log.info("stream.ended")
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise errors.Unwanted(error.details() or "the server does not know this worker") from error
            log.warning("stream.broken", code=error.code().name, details=error.details())
        except OSError as error:
            log.error("stream.unusable_file", file=error.filename, error=error.strerror)  # noqa: TRY400 - says it all
        await backoff.wait(stop, delays.next_s())


async def _session(link: Link, agent: Agent, delays: backoff.Backoff) -> None:
    async with _connected(link) as channel:
        call = agent_pb2_grpc.AgentsStub(channel).Connect(metadata=_metadata(link))
        try:
            await call.write(agent_pb2.AgentMessage(hello=agent.hello()))
            await _converse(call, agent, delays)
        finally:
            call.cancel()


async def _converse(
    call: grpc.aio.StreamStreamCall[agent_pb2.AgentMessage, agent_pb2.ServerMessage],
    agent: Agent,
    delays: backoff.Backoff,
) -> None:
    """Listens and reports until one of the two ends; the listener knows best how the stream ended."""
    greeted = asyncio.Event()
    tasks = [
        asyncio.ensure_future(_listen(call, agent, greeted, delays)),
        asyncio.ensure_future(_report(call, agent, greeted)),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    ended[0].result()


async def _listen(
    call: grpc.aio.StreamStreamCall[agent_pb2.AgentMessage, agent_pb2.ServerMessage],
    agent: Agent,
    greeted: asyncio.Event,
    delays: backoff.Backoff,
) -> None:
    async for message in call:
        if message.HasField("desired"):
            agent.accept(message.desired)
            delays.reset()
            greeted.set()


async def _report(
    call: grpc.aio.StreamStreamCall[agent_pb2.AgentMessage, agent_pb2.ServerMessage],
    agent: Agent,
    greeted: asyncio.Event,
) -> None:
    """Reports begin once the server has said what it wants."""
    await greeted.wait()
    while True:
        agent.changed.clear()
        report = await agent.report()
        await call.write(agent_pb2.AgentMessage(report=report))
        agent.reported(report)
        await backoff.wait(agent.changed, agent.report_interval_s())


@contextlib.asynccontextmanager
async def _connected(link: Link) -> AsyncIterator[grpc.aio.Channel]:
    if link.ca or link.cert:
        credentials = grpc.ssl_channel_credentials(
            link.ca.read_bytes() if link.ca else None,
            link.key.read_bytes() if link.key else None,
            link.cert.read_bytes() if link.cert else None,
        )
        channel = grpc.aio.secure_channel(link.target, credentials, options=_OPTIONS)
    else:
        channel = grpc.aio.insecure_channel(link.target, options=_OPTIONS)
    async with channel:
        yield channel


def _metadata(link: Link) -> tuple[tuple[str, str], ...]:
    token = link.token_file.read_text(encoding="utf-8").strip()
    replica = (("tms-replica-id", link.replica_id),) if link.replica_id else ()
    return (("tms-worker-id", link.worker_id), ("authorization", f"Bearer {token}"), *replica)
