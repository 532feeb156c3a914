"""The worker as a process: an unmodified client, metrics, signals, refused starts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
from prometheus_client import parser

from tests.support import onnx_models

DATATYPES = (
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
)
FRONTENDS = pytest.mark.parametrize("frontends", [1, 2])
CALLS = pathlib.Path(__file__).with_name("triton_calls.py")


async def get(port: int, path: str) -> tuple[int, dict[str, str], str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(60):
        raw = (await reader.read()).decode()
    writer.close()
    head, _, body = raw.partition("\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
    return int(head.split()[1]), headers, body


async def _moment() -> None:
    """Lets a little time pass between two looks at another process."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await asyncio.Event().wait()


@pytest.mark.slow  # a whole worker and a whole client start
@FRONTENDS
@pytest.mark.parametrize("frontend", ["native", "grpcio"])
async def test_an_unmodified_client_is_served(launch: Any, repository: pathlib.Path) -> None:
    for datatype in DATATYPES:
        onnx_models.put(repository, f"id_{datatype.lower()}", onnx_models.identity(datatype))
    worker = await launch("--model-control-mode=explicit", "--load-model=*")
    command = [sys.executable, str(CALLS), str(worker.ports["http"]), str(worker.ports["grpc"])]
    called = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=100)
    assert called.returncode == 0, called.stderr + worker.log()
    seen = json.loads(called.stdout)
    over_http, over_grpc = seen["http"], seen["grpc"]
    assert [kind for kind, fine in over_http["json"].items() if not fine] == []
    assert [kind for kind, fine in over_http["binary"].items() if not fine] == []
    assert [kind for kind, fine in over_grpc["raw"].items() if not fine] == []
    assert set(over_grpc["raw"]) == set(DATATYPES)
    assert over_http["async"]
    for part, status in ((over_http, "404"), (over_grpc, "StatusCode.NOT_FOUND")):
        assert part["ready"]
        assert part["live"]
        assert part["reloaded"]
        assert part["unknown"] == [status, "Request for unknown model: 'nope' is not found"]
        assert part["platform"] == "onnxruntime_onnx"
        assert part["max_batch_size"] == 4
        assert part["index"] == sorted(["addsub", "ident", "slow", "text", *(f"id_{d.lower()}" for d in DATATYPES)])
    assert (over_http["count"], over_grpc["count"]) == (2, 3)
    assert over_grpc["stream"]["ids"] == ["0", "1", "2", None, *map(str, range(4, 10))]
    assert "unknown model: 'nope'" in over_grpc["stream"]["errors"][0]


@FRONTENDS
async def test_metrics_are_valid_and_count(launch: Any) -> None:
    worker = await launch()
    status, headers, body = await get(worker.ports["metrics"], "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in parser.text_string_to_metric_families(body)}
    samples = {
        # The parser gives counters the suffix of newer formats.
        (sample.name.removesuffix("_total"), sample.labels.get("model"), sample.labels.get("reason")): sample.value
        for family in families.values()
        for sample in family.samples
    }
    for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
        assert samples["nv_inference_request_failure", "ident", reason] == 0
    assert samples["nv_inference_pending_request_count", "ident", None] == 0
    assert samples["nv_cpu_memory_total_bytes", None, None] > samples["nv_cpu_memory_used_bytes", None, None] > 0
    assert 0 <= samples["nv_cpu_utilization", None, None] <= 1
    # A counter's own name, without the suffix that client libraries would add.
    assert re.search(r'^nv_inference_count\{model="ident",version="1"\} 0$', body, re.MULTILINE)
    assert re.search(r"^# TYPE nv_inference_count counter$", body, re.MULTILINE)
    assert (await get(worker.ports["metrics"], "/v2"))[0] == 404


@FRONTENDS
async def test_requests_and_their_times_are_counted(launch: Any) -> None:
    worker = await launch()
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.ports["http"])
    body = json.dumps(
        {"inputs": [{"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    ).encode()
    one = b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b"
    writer.write(one % (b"slow", len(body), body) * 12)
    async with asyncio.timeout(60):
        await reader.readuntil(b"}]}")  # the first is done
        _, _, during = await get(worker.ports["metrics"], "/metrics")
        for _ in range(11):
            await reader.readuntil(b"}]}")
    writer.close()
    _, _, after = await get(worker.ports["metrics"], "/metrics")
    assert re.search(r'^tms_inference_in_flight\{model="slow",version="1"\} [1-9]', during, re.MULTILINE)
    assert 'tms_inference_in_flight{model="slow",version="1"} 0\n' in after
    (histogram,) = (
        family
        for family in parser.text_string_to_metric_families(after)
        if family.name == "tms_inference_request_duration_seconds"
    )
    assert histogram.type == "histogram"
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for sample in histogram.samples
        if sample.name.endswith("_bucket") and sample.labels["model"] == "slow"
    ]
    assert buckets == sorted(buckets)
    assert [buckets[0][0], buckets[-1]] == [0.0002, (float("inf"), 12)]
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)


async def test_a_worker_follows_its_repository(launch: Any, repository: pathlib.Path) -> None:
    worker = await launch("--model-control-mode=poll", "--repository-poll-secs=1")
    onnx_models.put(repository, "late", onnx_models.identity())
    async with asyncio.timeout(60):
        while (await get(worker.ports["http"], "/v2/models/late/ready"))[0] != 200:
            await _moment()
    assert (await get(worker.ports["http"], "/v2/health/ready"))[0] == 200


@pytest.mark.slow  # a worker starts, dies and starts again
async def test_what_came_with_a_load_is_gone_after_a_crash(
    launch: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    worker = await launch("--model-control-mode=explicit")
    file = base64.b64encode(onnx_models.identity()).decode()
    body = json.dumps({"parameters": {"config": "{}", "file:1/model.onnx": file}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.ports["http"])
    head = b"POST /v2/repository/models/brought/load HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    async with asyncio.timeout(60):
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert len(list(scratch.glob("tms-models-*/model-*/1/model.onnx"))) == 1
    worker.process.kill()
    await asyncio.to_thread(worker.wait)
    assert len(list(scratch.glob("tms-models-*"))) == 1
    await launch("--model-control-mode=explicit")
    assert list(scratch.glob("tms-models-*")) == []


async def test_scrapes_share_a_connection(launch: Any) -> None:
    worker = await launch()
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.ports["metrics"])
    for _ in range(3):
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
        async with asyncio.timeout(60):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", head)[1]))  # type: ignore[index]  # no match is a failure
        assert b"nv_cpu_utilization" in body
    writer.close()


@FRONTENDS
async def test_a_signal_drains_what_is_in_flight_and_exits_0(launch: Any) -> None:
    worker = await launch()
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.ports["http"])
    body = json.dumps(
        {"inputs": [{"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    ).encode()
    one = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    writer.write(one * 4)
    async with asyncio.timeout(60):
        await reader.readuntil(b"}]}")  # the first is done, the others wait
        worker.process.send_signal(signal.SIGTERM)
        rest = await reader.read()
    writer.close()
    assert rest.count(b"HTTP/1.1 200 OK") == 3
    assert rest.count(b"Connection: close") == 1
    assert await asyncio.to_thread(worker.wait) == 0
    assert not worker.says_ready()
    assert '"drained": true' in worker.log()


@FRONTENDS
async def test_a_second_signal_exits_at_once(launch: Any) -> None:
    worker = await launch("--exit-timeout-secs=100")
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.ports["http"])
    body = json.dumps(
        {"inputs": [{"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    ).encode()
    one = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    writer.write(one * 60)
    async with asyncio.timeout(60):
        await reader.readuntil(b"}]}")
    worker.process.send_signal(signal.SIGTERM)
    worker.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(worker.wait) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    writer.close()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--vertex-ai-port=1"], 2, "--vertex-ai-port=1 is not supported"),
        (["--http-address=192.0.2.1"], 1, "192.0.2.1"),
        (["--log-file=/nowhere/log"], 2, "--log-file cannot be opened"),
        (["--http-tls-cert=/nowhere", "--http-tls-key=/nowhere"], 1, "No such file"),
        (["--grpc-use-ssl=true", "--grpc-server-cert=/nowhere", "--grpc-server-key=/nowhere"], 1, "/nowhere"),
        (["--model-control-mode=explicit", "--load-model=nope"], 1, "failed to load"),
    ],
)
@FRONTENDS
async def test_a_start_that_cannot_be_is_told_and_leaves_no_process(
    repository: pathlib.Path, arguments: list[str], code: int, words: str, frontends: int
) -> None:
    command = [sys.executable, "-m", "gpu_worker", f"--model-repository={repository}", "--http-address=127.0.0.1"]
    command += ["--grpc-address=127.0.0.1", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    command += [f"--frontends={frontends}", *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert words in done.stderr


async def test_ignored_flags_are_named_in_the_log(launch: Any) -> None:
    worker = await launch("--http-thread-count=8", "--allow-grpc=false")
    assert '"flag": "--http-thread-count"' in worker.log()
    assert worker.ports["grpc"] is None
    assert (await get(worker.ports["http"], "/v2/health/ready"))[0] == 200
