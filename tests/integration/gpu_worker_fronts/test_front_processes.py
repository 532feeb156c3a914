"""Several front processes before one engine: who serves, what a death takes along, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import psutil
import pytest

from tests.support import onnx_models

from .conftest import WIDE_S, Answer, Client, Launch, Worker
from .test_front_departures import load

ANY = """
max_batch_size: 0
input [{name: "INPUT" data_type: TYPE_FP32 dims: [-1, 4]}]
output [{name: "OUTPUT" data_type: TYPE_FP32 dims: [-1, 4]}]
"""


@dataclasses.dataclass
class Family:
    """A worker and its processes."""

    worker: Worker

    def members(self, role: str) -> list[psutil.Process]:
        parent = psutil.Process(self.worker.process.pid)
        return [child for child in parent.children() if role in _words(child)]

    def engine(self) -> psutil.Process:
        (found,) = self.members("engine")
        return found

    def fronts(self) -> list[psutil.Process]:
        return self.members("front")

    def of(self, port: int) -> dict[int, int]:
        """Connections that clients have to `port`, by front process."""
        return {
            front.pid: sum(
                each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in _connections(front)
            )
            for front in self.fronts()
        }


def _words(process: psutil.Process) -> list[str]:
    """Its command line; none once it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return process.net_connections("tcp")
    except psutil.Error:
        return []


def infer(model: str, values: Any) -> bytes:
    """A binary request."""
    data = np.asarray(values, np.float32)
    tensor = {
        "name": "INPUT",
        "shape": data.shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": data.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    lines = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(head) + data.nbytes}\r\n"
    lines += f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    return lines.encode() + head + data.tobytes()


def values(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    head_bytes = int(answer.headers["inference-header-content-length"])
    return np.frombuffer(answer.body[head_bytes:], np.float32).reshape(-1, 4)


Connect = Callable[[Worker], Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects to a worker over HTTP; ends the connections after the test."""
    clients: list[Client] = []

    async def one(worker: Worker) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", worker.ports["http"]))
        clients.append(client)
        return client

    yield one
    for client in clients:
        client.writer.close()
        with contextlib.suppress(OSError):
            await client.writer.wait_closed()


async def until(holds: Callable[[], bool]) -> None:
    """Looks again until it is so: what processes do is no event here."""
    async with asyncio.timeout(WIDE_S):
        while not holds():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await asyncio.Event().wait()


def gone(processes: list[psutil.Process]) -> Callable[[], bool]:
    return lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


def areas(process: psutil.Process) -> int:
    """Areas of shared memory that a process has mapped."""
    return pathlib.Path(f"/proc/{process.pid}/maps").read_text().count("memfd:tms-to-")


def named() -> list[str]:
    """Objects of shared memory that have a name, and so could be left behind."""
    return [each.name for each in pathlib.Path("/dev/shm").iterdir() if "tms-to" in each.name]


@pytest.fixture
def repository(repository: pathlib.Path) -> pathlib.Path:
    onnx_models.put(repository, "any", onnx_models.identity(), config=ANY)
    return repository


@pytest.mark.slow  # a whole worker of several processes
@pytest.mark.parametrize("frontends", [2, 3])
async def test_all_fronts_serve_and_every_answer_is_right(launch: Launch, connect: Connect, frontends: int) -> None:
    worker = await launch()
    family = Family(worker)
    clients = [await connect(worker) for _ in range(48)]
    sizes = [1, 3, 200, 2_000, 60_000]

    async def ask(number: int) -> None:
        rng = np.random.default_rng(number)
        for size in sizes:
            sent = rng.random((size, 4), np.float32)
            assert (values(await clients[number].ask(infer("any", sent))) == sent).all()

    await asyncio.gather(*(ask(number) for number in range(48)))
    served = family.of(worker.ports["http"])
    assert len(served) == frontends
    assert all(served.values()), "every front has connections"
    assert sum(served.values()) == 48


@pytest.mark.slow  # a whole worker of several processes, and a client
@pytest.mark.parametrize("frontends", [3])
@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_a_front_that_dies_takes_only_its_own_connections_along(
    launch: Launch, connect: Connect, frontends: int, kind: str
) -> None:
    worker = await launch()
    family = Family(worker)
    before = {front.pid for front in family.fronts()}
    async with load(kind, worker.ports[kind]) as clients:
        await until(lambda: sum(family.of(worker.ports[kind]).values()) >= (4 if kind == "http" else 1))
        (victim, *_) = sorted(family.fronts(), key=lambda front: -family.of(worker.ports[kind])[front.pid])
        waiting = [await connect(worker) for _ in range(12)]
        for client in waiting:
            await client.send(infer("slow", np.ones((1, 4))))
        victim.kill()
        answers = await asyncio.gather(*(client.answers(1) for client in waiting), return_exceptions=True)
        await until(lambda: len({front.pid for front in family.fronts()} - before) == 1)
        await until(lambda: worker.log().count('"event": "front.ended"') == 1)
        seen = await clients.end()
    alive = [answer for answer in answers if isinstance(answer, list) and answer]
    assert alive, "connections of the other fronts were served"
    assert all((values(answer[0]) == 1).all() for answer in alive)
    assert seen["answered"] > 0
    # Whoever was connected to it saw the connection end, and nothing else.
    assert sum(seen["met"].values()) <= 8, seen["met"]
    engine = family.engine()
    await until(lambda: areas(engine) == 2 * frontends)
    client = await connect(worker)
    assert (values(await client.ask(infer("any", np.ones((1, 4))))) == 1).all()


@pytest.mark.slow  # a whole worker of several processes
@pytest.mark.parametrize("frontends", [2])
async def test_requests_of_a_dead_front_are_cancelled(launch: Launch, connect: Connect, frontends: int) -> None:
    worker = await launch()
    family = Family(worker)
    client = await connect(worker)
    await client.send(infer("slow", np.ones((1, 4))) * 30)
    await client.answers(1)
    counts = family.of(worker.ports["http"])
    (victim,) = [front for front in family.fronts() if counts[front.pid]]
    victim.kill()
    with contextlib.suppress(OSError):
        await client.answers(29)

    async def cancelled() -> int:
        try:
            other = await connect(worker)
            answer = await other.ask(b"GET /v2/models/slow/stats HTTP/1.1\r\nHost: h\r\n\r\n")
        except (OSError, ValueError):  # no answer: the kernel gave the connection to the front that is gone
            return 0
        found: Any = answer.json()
        return int(found["model_stats"][0]["inference_stats"]["fail"]["count"])

    async with asyncio.timeout(WIDE_S):
        while not await cancelled():
            pass


@pytest.mark.slow  # a whole worker of several processes
@pytest.mark.parametrize("frontends", [2])
async def test_an_engine_that_dies_ends_the_worker(launch: Launch, connect: Connect, frontends: int) -> None:
    worker = await launch()
    family = Family(worker)
    everybody = [family.engine(), *family.fronts()]
    clients = [await connect(worker) for _ in range(8)]
    for client in clients:
        await client.send(infer("slow", np.ones((1, 4))) * 4)
    family.engine().kill()
    answers = await asyncio.gather(*(client.answers(4) for client in clients))
    assert await asyncio.to_thread(worker.wait) == 1
    assert {answer.status for each in answers for answer in each} <= {200, 503}
    assert all(answers), "whoever waited was told"
    assert gone(everybody)()
    assert not worker.says_ready()
    assert '"event": "engine.ended"' in worker.log()


@pytest.mark.slow  # a whole worker of several processes
@pytest.mark.parametrize("frontends", [2])
async def test_nothing_outlives_the_supervisor(launch: Launch, frontends: int) -> None:
    worker = await launch()
    family = Family(worker)
    everybody = [family.engine(), *family.fronts()]
    assert len(everybody) == 3
    worker.process.kill()
    await until(gone(everybody))
    assert named() == []


@pytest.mark.slow  # a whole worker of several processes
@pytest.mark.parametrize("frontends", [2])
async def test_signals_to_the_whole_group_drain_as_one_to_the_worker_does(
    launch: Launch, connect: Connect, frontends: int
) -> None:
    """A terminal sends SIGINT to all processes, a service manager SIGTERM."""
    worker = await launch()
    family = Family(worker)
    everybody = [family.engine(), *family.fronts()]
    client = await connect(worker)
    await client.send(infer("slow", np.ones((1, 4))) * 5)
    await client.answers(1)
    for member in everybody:
        member.send_signal(signal.SIGTERM)
    worker.process.send_signal(signal.SIGTERM)
    answers = await client.answers(4)
    assert [answer.status for answer in answers] == [200] * 4
    assert await asyncio.to_thread(worker.wait) == 0
    assert '"drained": true' in worker.log()
    assert gone(everybody)()


@pytest.mark.slow  # whole workers of several processes
@pytest.mark.parametrize("frontends", [2])
async def test_a_port_is_shared_with_others_only_when_asked(launch: Launch, repository: pathlib.Path) -> None:
    worker = await launch()
    port = worker.ports["http"]
    command = [sys.executable, "-m", "gpu_worker", f"--model-repository={repository}", "--http-address=127.0.0.1"]
    command += [f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false", "--frontends=2"]
    refused = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in refused.stderr
    other = await launch("--reuse-http-port=true", f"--http-port={port}")
    assert other.ports["http"] == port


def test_several_fronts_need_something_to_serve(repository: pathlib.Path) -> None:
    command = [sys.executable, "-m", "gpu_worker", f"--model-repository={repository}", "--frontends=2"]
    command += ["--allow-http=false", "--allow-grpc=false"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "--frontends=2 needs --allow-http or --allow-grpc" in refused.stderr


@pytest.mark.slow  # a whole worker of several processes
@pytest.mark.parametrize("frontends", [2])
async def test_a_front_that_hangs_holds_nobody_else_up(launch: Launch, connect: Connect, frontends: int) -> None:
    worker = await launch()
    family = Family(worker)
    clients = [await connect(worker) for _ in range(24)]
    for client in clients:
        await client.ask(infer("any", np.ones((1, 4))))
    hung, well = family.fronts()
    hung.suspend()
    sent = [asyncio.ensure_future(client.ask(infer("any", np.ones((50_000, 4))))) for client in clients]
    served = family.of(worker.ports["http"])[well.pid]
    await until(lambda: sum(each.done() for each in sent) == served)
    hung.resume()
    for answer in await asyncio.gather(*sent):
        assert (values(answer) == 1).all()


@pytest.mark.slow  # a whole worker of several processes
@pytest.mark.parametrize("frontends", [2])
async def test_no_port_is_left_bound(launch: Launch, frontends: int) -> None:
    worker = await launch()
    worker.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == 0
    for port in worker.ports.values():
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))


@pytest.mark.slow  # a whole worker of several processes
@pytest.mark.parametrize("frontends", [2])
async def test_what_a_client_changes_of_the_log_holds_for_all_processes(
    launch: Launch, connect: Connect, frontends: int
) -> None:
    worker = await launch()
    family = Family(worker)
    assert worker.log().count('"event": "front.listening"') == 2
    client = await connect(worker)
    body = b'{"log_info": false}'
    changed = await client.ask(
        b"POST /v2/logging HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    assert changed.status == 200
    before = {front.pid for front in family.fronts()}
    family.fronts()[0].kill()
    await until(
        lambda: len(family.of(worker.ports["http"])) == 2 and {front.pid for front in family.fronts()} != before
    )
    await until(lambda: worker.log().count('"event": "front.ended"') == 1)
    worker.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == 0
    assert worker.log().count('"event": "front.listening"') == 2, "who came later knows too"
    assert '"event": "front.stopped"' not in worker.log()
    assert '"event": "worker.signalled"' not in worker.log()
