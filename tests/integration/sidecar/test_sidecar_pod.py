"""The sidecar as a pod runs it: probes, drain and load of a worker that clients reach directly."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pathlib
import signal
from typing import Any

import pytest

from protos.tms.v1 import agent_pb2
from tests.support import onnx_models, v2_servers

from .conftest import ask, scaled
from .control_plane import PATIENCE_S, ControlPlane, Sidecar, desired, serving, states
from .sources import model_of

_LOOK_S = 0.05


@dataclasses.dataclass
class Pod:
    """A sidecar with its health port."""

    sidecar: Sidecar
    worker: v2_servers.WorkerProcess
    port: int

    async def start(self, *flags: str) -> None:
        await self.sidecar.start(f"--health-port={self.port}", "--replica-id=pod-1", *flags)

    async def get(self, target: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
        return await self.raw(f"{method} {target} HTTP/1.1\r\nHost: pod\r\n\r\n".encode())

    async def raw(self, request: bytes) -> tuple[int, dict[str, Any]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        async with asyncio.timeout(PATIENCE_S):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(body)

    async def says(self, target: str, status: int, reason: str = "") -> dict[str, Any]:
        """Waits until the path is answered so; what was said with it."""
        seen: object = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        seen = answered, body = await self.get(target)
                    except OSError as error:
                        seen = error
                    else:
                        if (answered, body.get("reason", "")) == (status, reason):
                            return body
                    await asyncio.sleep(_LOOK_S)  # noqa: TID251 - a probe is asked, it does not tell
        except TimeoutError:
            raise AssertionError(f"{target} should say {status} {reason}, says {seen}") from None


@pytest.fixture
async def pod(sidecar: Sidecar, worker: v2_servers.WorkerProcess) -> Pod:
    return Pod(sidecar, worker, serving().endpoint.http_port)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "source"


def slow(source: pathlib.Path, turns: int) -> agent_pb2.DesiredModel:
    config = 'max_batch_size: 0 instance_group { count: 1 kind: KIND_CPU } input { name: "INPUT" data_type: TYPE_FP32 '
    config += 'dims: [-1, 4] } output { name: "OUTPUT" data_type: TYPE_FP32 dims: [-1, 4] }'
    return desired(model_of(onnx_models.put(source, "slow", onnx_models.slow(turns), config=config), "slow"))


async def test_a_pod_is_ready_once_all_is_loaded_and_routed_and_stays_so(
    control: ControlPlane, pod: Pod, source: pathlib.Path
) -> None:
    await control.stop()
    await pod.start()
    await pod.says("/livez", 200)
    await pod.says("/readyz", 503, "ModelsNotLoaded")
    await control.start()
    # With nothing wanted all that is wanted is loaded.
    await pod.says("/readyz", 503, "NotRouted")
    a = desired(scaled(source, "a"))
    await control.want([a], [])
    await control.heard(lambda report: states(report) == {"a": "READY"})
    assert control.metadata["tms-replica-id"] == "pod-1"
    await pod.says("/readyz", 503, "NotRouted")
    await control.route()
    await pod.says("/readyz", 200)

    garbage = desired(model_of(onnx_models.put(source, "garbage", b"this is no model"), "garbage"))
    later = desired(scaled(source, "later"))
    later.uri = (source / "nowhere").as_uri()
    control.desired.routed = False
    await control.want([a, garbage, later], [])
    await control.heard(lambda report: states(report).get("garbage") == "FAILED")
    assert (await pod.get("/readyz"))[0] == 200
    assert (await pod.get("/workerlivez"))[0] == 200


async def test_a_worker_that_restarts_is_not_ready_until_it_is_filled_again(
    control: ControlPlane, pod: Pod, source: pathlib.Path
) -> None:
    await control.want([desired(scaled(source, "a")), slow(source, 10)], [])
    await control.route()
    await pod.start()
    await pod.says("/readyz", 200)

    await control.stop()
    await asyncio.to_thread(pod.worker.kill)
    status, body = await pod.get("/readyz")
    assert (status, body["reason"]) == (503, "WorkerUnavailable")
    await asyncio.to_thread(pod.worker.start)
    while (said := await pod.get("/readyz"))[0] != 200:
        assert said[1]["reason"] in {"WorkerUnavailable", "ModelsLost", "ModelsNotLoaded"}
    assert await asyncio.to_thread(ask, pod.worker.endpoint.http_port, "a") == [2, 4, 6, 8]
    assert await asyncio.to_thread(ask, pod.worker.endpoint.http_port, "slow") == [1, 2, 3, 4]


async def test_a_sidecar_that_restarts_remembers_that_it_was_routed(
    control: ControlPlane, pod: Pod, source: pathlib.Path
) -> None:
    a = desired(scaled(source, "a"))
    await control.want([a], [])
    await control.route()
    await pod.start()
    await pod.says("/readyz", 200)
    # Said later, in the same life of the pod, it takes nothing back.
    control.desired.routed = False
    await control.want([a, desired(scaled(source, "b"))], [])
    await control.heard(lambda report: states(report) == {"a": "READY", "b": "READY"})
    await control.stop()
    await pod.sidecar.kill()

    await pod.start()

    await pod.says("/readyz", 200)


async def test_while_it_drains_a_pod_is_not_ready_and_the_answer_comes_when_all_is_quiet(
    control: ControlPlane, pod: Pod, source: pathlib.Path
) -> None:
    await control.want([slow(source, 2_000_000)], [])
    await control.route()
    await pod.start()
    await pod.says("/readyz", 200)

    asking = asyncio.ensure_future(asyncio.to_thread(ask, pod.worker.endpoint.http_port, "slow"))
    busy = await control.heard(lambda report: report.models[0].in_flight == 1)
    assert busy.in_flight_known
    drained = asyncio.ensure_future(pod.get(f"/drain?timeout_s={PATIENCE_S}"))
    await pod.says("/readyz", 503, "Draining")
    assert await drained == (200, {"outcome": "Idle"})
    assert asking.done()
    assert await asking == [1, 2, 3, 4]

    # The container that was drained is started again in the same pod.
    await asyncio.to_thread(pod.worker.kill)
    await control.heard(lambda report: not report.server_ready)
    await asyncio.to_thread(pod.worker.start)
    await pod.says("/readyz", 200)


async def test_a_drain_ends_at_its_bound(control: ControlPlane, pod: Pod, source: pathlib.Path) -> None:
    await control.want([slow(source, 3_000_000)], [])
    await pod.start()
    await control.heard(lambda report: states(report) == {"slow": "READY"})
    asking = asyncio.ensure_future(asyncio.to_thread(ask, pod.worker.endpoint.http_port, "slow"))
    await control.heard(lambda report: report.models[0].in_flight == 1)

    assert await pod.get("/drain?timeout_s=0.2") == (200, {"outcome": "TimedOut"})

    assert not asking.done()
    assert await asking == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("request_", "status", "word"),
    [
        (b"GET /nowhere HTTP/1.1\r\n\r\n", 404, "/readyz"),
        (b"POST /drain HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405, "GET"),
        (b"GET /drain?timeout_s=soon HTTP/1.1\r\n\r\n", 400, "timeout_s"),
        (b"GET /drain?timeout_s=-1 HTTP/1.1\r\n\r\n", 400, "timeout_s"),
        (b"GET /drain?timeout_s=nan HTTP/1.1\r\n\r\n", 400, "timeout_s"),
        (b"GET /livez HTTP/1.1\r\nX: %b\r\n\r\n" % (b"x" * 9000), 431, "smaller"),
        (b"\x16\x03\x01 nonsense\r\n\r\n", 400, "malformed"),
    ],
)
async def test_what_is_no_probe_is_refused_with_a_word(pod: Pod, request_: bytes, status: int, word: str) -> None:
    await pod.start()
    await pod.says("/livez", 200)

    answered, body = await pod.raw(request_)

    assert (answered, word in body["error"]) == (status, True)
    assert (await pod.get("/livez"))[0] == 200


async def test_a_worker_that_does_not_get_on_is_told_and_fails_its_liveness(
    control: ControlPlane, pod: Pod, source: pathlib.Path
) -> None:
    await control.want([slow(source, 4_000_000)], [])
    await pod.start("--wedged-after=1")
    await control.heard(lambda report: states(report) == {"slow": "READY"})
    assert (await pod.get("/workerlivez"))[0] == 200

    asking = asyncio.ensure_future(asyncio.to_thread(ask, pod.worker.endpoint.http_port, "slow"))
    told = await control.heard(lambda report: bool(report.worker_trouble))
    assert told.worker_trouble.startswith("WorkerWedged: 1 requests")
    assert told.server_ready
    await pod.says("/workerlivez", 503, "WorkerWedged")
    assert (await pod.get("/livez"))[0] == 200
    assert (await pod.get("/readyz"))[1]["reason"] == "WorkerWedged"

    assert await asking == [1, 2, 3, 4]
    await control.heard(lambda report: not report.worker_trouble)
    await pod.says("/workerlivez", 200)


@pytest.mark.slow  # silence counts after three bounds of five seconds
async def test_a_worker_that_falls_silent_fails_its_liveness(
    control: ControlPlane, pod: Pod, source: pathlib.Path
) -> None:
    await control.want([desired(scaled(source, "a"))], [])
    await pod.start()
    await control.heard(lambda report: states(report) == {"a": "READY"})
    os.kill(pod.worker.pid, signal.SIGSTOP)
    try:
        assert (await pod.get("/readyz"))[1]["reason"] == "WorkerUnavailable"
        assert (await pod.get("/workerlivez"))[0] == 200
        await pod.says("/workerlivez", 503, "WorkerUnresponsive")
    finally:
        os.kill(pod.worker.pid, signal.SIGCONT)
    await pod.says("/workerlivez", 200)


async def test_use_and_times_of_direct_clients_are_reported(
    control: ControlPlane, pod: Pod, source: pathlib.Path
) -> None:
    await control.want([desired(scaled(source, "a")), desired(scaled(source, "b"))], [])
    await pod.start()
    await control.heard(lambda report: states(report) == {"a": "READY", "b": "READY"})
    for _ in range(3):
        await asyncio.to_thread(ask, pod.worker.endpoint.http_port, "a")
    with pytest.raises(OSError, match="400"):
        await asyncio.to_thread(ask, pod.worker.endpoint.http_port, "a", name="NOPE")

    report = await control.heard(lambda report: report.models[0].request_count == 3)

    used, idle = report.models
    assert (used.failure_count, idle.request_count, idle.failure_count) == (1, 0, 0)
    assert [bucket.upper_us for bucket in used.latency][:2] == [200, 500]
    counts = [bucket.count for bucket in used.latency]
    assert (used.latency[-1].upper_us, counts[-1], counts) == (0, 3, sorted(counts))
    assert (report.in_flight_known, used.in_flight) == (True, 0)
    assert not report.HasField("gpu_utilization_permille")


async def test_before_a_model_goes_its_clients_are_told_and_it_serves_them_meanwhile(
    control: ControlPlane, pod: Pod, source: pathlib.Path
) -> None:
    b = desired(scaled(source, "b"))
    await control.want([desired(scaled(source, "a")), b], [])
    await pod.start("--model-stay=1")
    await control.heard(lambda report: states(report) == {"a": "READY", "b": "READY"})
    going = asyncio.ensure_future(until_told_to_go(pod.worker.endpoint.http_port, "a"))
    staying = asyncio.ensure_future(until_told_to_go(pod.worker.endpoint.http_port, "b"))

    await control.want([b], [])
    assert await going == {200}
    draining = await control.heard(lambda _: True)
    assert states(draining) == {"b": "READY", "a": "DRAINING"}

    await control.heard(lambda report: states(report) == {"b": "READY"})
    assert not staying.done()
    staying.cancel()
    await asyncio.wait([staying])


async def until_told_to_go(port: int, model: str) -> set[int]:
    """Asks again and again on one connection until an answer ends it; the statuses seen."""
    body = json.dumps({"inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
    request = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    statuses = set()
    try:
        while True:
            writer.write(request.encode())
            async with asyncio.timeout(PATIENCE_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = next(line for line in head.split("\r\n") if line.startswith("content-length"))
                await reader.readexactly(int(length.partition(":")[2]))
            statuses.add(int(head.split()[1]))
            if "connection: close" in head:
                return statuses
    finally:
        writer.close()


async def test_a_patient_probe_is_answered_once_the_pod_is_ready_and_not_later(
    pod: Pod, control: ControlPlane, source: pathlib.Path
) -> None:
    await pod.start()
    await pod.says("/livez", 200)
    assert (await pod.get("/startedz?patience_s=30"))[0] == 200
    waiting = asyncio.create_task(pod.get("/readyz?patience_s=60"))
    await control.want([desired(scaled(source, "a"))], [])
    await control.route()
    assert (await asyncio.wait_for(waiting, PATIENCE_S))[0] == 200
    assert (await pod.get("/readyz?patience_s=soon"))[0] == 400
