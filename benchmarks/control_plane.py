"""Creates and renewals through gRPC against raw SQLite commits of rows of the same size on the same disk."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import uvloop

from benchmarks import processes, report
from examples.digits import train
from protos.tms.v1 import common_pb2, lease_pb2, lease_pb2_grpc, pool_pb2, pool_pb2_grpc

RUNS = 3
CREATES = 1000
RENEWALS = 4000
IN_FLIGHT = 64
ROW_BYTES = 1500


def run() -> report.Section:
    """Rates of durable calls; every acknowledged create is synced to disk, on both sides."""
    with tempfile.TemporaryDirectory(prefix="tms-bench-") as name:
        scratch = pathlib.Path(name)
        trained = train.train(scratch)
        inserts = report.median_of(RUNS, lambda: _commits(scratch, "INSERT INTO lease VALUES (?, ?)"))
        updates = report.median_of(RUNS, lambda: _commits(scratch, "REPLACE INTO lease VALUES (?, ?)"))
        with processes.server(scratch, trained.repository) as target:
            creates, renewals, kept_alive = uvloop.run(_measure(target))
    rows = [
        _row("creates, unary", creates, inserts, "one INSERT a commit"),
        _row("renewals, unary", renewals, updates, "one update a commit"),
        _row("renewals, KeepAlive stream", kept_alive, updates, "one update a commit"),
    ]
    method = f"medians of {RUNS} runs; {IN_FLIGHT} calls in flight from one Python client on the same cores; SQLite WAL, FULL sync"
    return report.Section("Control plane", method, rows)


def _row(what: str, rate: float, reference: float, how: str) -> report.Row:
    return report.Row(what, f"{rate:,.0f}/s", f"{reference:,.0f}/s raw SQLite, {how}", rate / reference)


def _commits(scratch: pathlib.Path, statement: str) -> float:
    path = scratch / "raw.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("DROP TABLE IF EXISTS lease")
        database.execute("CREATE TABLE lease (id TEXT PRIMARY KEY, body BLOB)")
        body, count, begun = b"x" * ROW_BYTES, 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < 1:
            database.execute(statement, (f"lease-{count}", body))
            count += 1
    return count / spent


async def _measure(target: str) -> tuple[float, float, float]:
    async with grpc.aio.insecure_channel(target) as channel:
        leases = lease_pb2_grpc.LeasesStub(channel)
        await _pool_without_room(channel, leases)
        creates, ids = [], list[str]()
        for run_number in range(RUNS):
            rate, made = await _creates(leases, run_number)
            creates.append(rate)
            ids += made
        renewals = [await _renewals(leases, ids) for _ in range(RUNS)]
        kept_alive = [await _keep_alive(leases, ids) for _ in range(RUNS)]
    return statistics.median(creates), statistics.median(renewals), statistics.median(kept_alive)


async def _pool_without_room(channel: grpc.aio.Channel, leases: lease_pb2_grpc.LeasesAsyncStub) -> None:
    """One worker that one lease fills: the leases to come are stored, planned for, and wait."""
    resources = common_pb2.Resources(memory_bytes=2**30)
    spec = pool_pb2.PoolSpec(worker=common_pb2.WorkerSpec(command="tms-worker", resources=resources), max_workers=1)
    pool = await pool_pb2_grpc.PoolsStub(channel).Create(pool_pb2.CreatePoolRequest(name="full", spec=spec))
    # Under a name of its own: the same model would be shared, and every lease would have room.
    await leases.Create(_request("filler", 900 * 2**20, "filler"))
    assert pool.name == "full"


def _request(request_id: str, declared_bytes: int, name: str = "digits") -> lease_pb2.CreateLeaseRequest:
    model = common_pb2.ModelReference(name=name, uri="model://bench/digits", declared_bytes=declared_bytes)
    pool = lease_pb2.PoolPlacement(pool="full")
    return lease_pb2.CreateLeaseRequest(request_id=request_id, models=[model], pool=pool)


async def _creates(leases: lease_pb2_grpc.LeasesAsyncStub, run_number: int) -> tuple[float, list[str]]:
    ids: list[str] = []

    async def one(number: int) -> None:
        ids.append((await leases.Create(_request(f"{run_number}-{number}", 800 * 2**20))).id)

    return await _rate(CREATES, one), ids


async def _renewals(leases: lease_pb2_grpc.LeasesAsyncStub, ids: list[str]) -> float:
    async def one(number: int) -> None:
        await leases.Renew(lease_pb2.RenewLeaseRequest(lease=ids[number % len(ids)]))

    return await _rate(RENEWALS, one)


async def _rate(count: int, one: Callable[[int], Awaitable[None]]) -> float:
    numbers = iter(range(count))

    async def in_turn() -> None:
        for number in numbers:
            await one(number)

    begun = time.perf_counter()
    await asyncio.gather(*(in_turn() for _ in range(IN_FLIGHT)))
    return count / (time.perf_counter() - begun)


async def _keep_alive(leases: lease_pb2_grpc.LeasesAsyncStub, ids: list[str]) -> float:
    room = asyncio.Semaphore(IN_FLIGHT)

    async def requests() -> AsyncIterator[lease_pb2.KeepAliveRequest]:
        for number in range(RENEWALS):
            await room.acquire()
            yield lease_pb2.KeepAliveRequest(lease=ids[number % len(ids)])

    begun = time.perf_counter()
    async for response in leases.KeepAlive(requests()):
        assert not response.error
        room.release()
    return RENEWALS / (time.perf_counter() - begun)
