"""Workers that make some calls only for those who show a header."""

from __future__ import annotations

import asyncio
import http.client
import pathlib
from collections.abc import Iterator

import pytest

from protos.tms.v1 import agent_pb2
from sidecar import access, errors, runtime
from tests.support import onnx_models, v2_servers

from .conftest import ask, scaled
from .control_plane import PATIENCE_S, ControlPlane, Sidecar, desired, message, serving, states

SECRET = "a value that nobody may read"
ALL = "health,statistics,model-repository"


def restricted(*groups: str) -> list[str]:
    return [f"--grpc-restricted-protocol={group}:Admin-Key={SECRET}" for group in groups]


@pytest.fixture
def worker(tmp_path: pathlib.Path) -> Iterator[v2_servers.WorkerProcess]:
    """Not started: each test says what is restricted."""
    made = v2_servers.WorkerProcess(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def headers(tmp_path: pathlib.Path) -> str:
    (tmp_path / "headers").write_text(f"\nadmin-key = {SECRET}\n")
    return f"--worker-headers-file={tmp_path / 'headers'}"


@pytest.mark.parametrize("groups", ["health", "statistics", "model-repository"])
async def test_a_model_says_which_header_is_missing_and_how_to_give_it(
    control: ControlPlane, sidecar: Sidecar, worker: v2_servers.WorkerProcess, groups: str, headers: str
) -> None:
    worker.start(*restricted(groups))
    at = serving("a")
    await control.want([desired(scaled(sidecar.folder / "source", "a"))], [at])
    await sidecar.start()

    failed = await control.heard(lambda report: states(report) == {"a": "FAILED"})

    told = failed.models[0]
    assert (told.reason, told.retryable) == ("WorkerRestricted", False)
    assert "expecting header 'triton-grpc-protocol-admin-key'" in told.message
    assert "--worker-headers-file" in told.message
    await sidecar.kill()
    await sidecar.start(headers)
    await control.heard(lambda report: message(at.endpoint) in report.endpoints)
    assert await asyncio.to_thread(ask, at.endpoint.http_port, "a") == [2, 4, 6, 8]
    assert SECRET not in sidecar.log()


async def test_a_worker_that_lets_nobody_in_keeps_no_lease_from_ending(
    control: ControlPlane, sidecar: Sidecar, worker: v2_servers.WorkerProcess
) -> None:
    """A server that does not answer confirms nothing; this one answers, and was never offered a model."""
    worker.start(*restricted(ALL))
    await control.want([desired(scaled(sidecar.folder / "source", "a"))], [serving("a")])
    await sidecar.start()
    await control.heard(lambda report: states(report) == {"a": "FAILED"} and report.server_ready)

    await control.want([], [])

    await control.heard(lambda report: report.generation == 2 and not report.models and report.server_ready)


async def test_what_was_refused_is_tried_again_by_itself_once_the_worker_lets_the_sidecar_in(
    control: ControlPlane, sidecar: Sidecar, worker: v2_servers.WorkerProcess
) -> None:
    worker.start(*restricted(ALL))
    await control.want([desired(scaled(sidecar.folder / "source", "a"))], [serving("a")])
    await sidecar.start()
    await control.heard(lambda report: states(report) == {"a": "FAILED"})
    await asyncio.to_thread(worker.kill)

    worker.start()

    await control.heard(lambda report: states(report) == {"a": "READY"})


async def test_what_served_before_the_worker_was_restricted_says_so(
    control: ControlPlane, sidecar: Sidecar, worker: v2_servers.WorkerProcess
) -> None:
    worker.start()
    await control.want([desired(scaled(sidecar.folder / "source", "a"))], [serving("a")])
    await sidecar.start()
    await control.heard(lambda report: states(report) == {"a": "READY"})
    await asyncio.to_thread(worker.kill)

    worker.start(*restricted(ALL))

    def refused(report: agent_pb2.Report) -> bool:
        return [each.reason for each in report.models] == ["WorkerRestricted"]

    told = await control.heard(refused)
    assert "--worker-headers-file" in told.models[0].message
    assert not told.server_ready, "what it holds is not known"


@pytest.mark.parametrize("shown", [False, True])
async def test_the_call_that_sends_clients_away_shows_the_header_too(
    control: ControlPlane, sidecar: Sidecar, worker: v2_servers.WorkerProcess, headers: str, *, shown: bool
) -> None:
    worker.start(f"--http-restricted-api=model-repository:admin-key={SECRET}")
    port = serving().endpoint.http_port
    flags = [f"--health-port={port}", "--log-level=debug"]
    await sidecar.start(*flags, *([headers] if shown else []))
    await control.met()

    assert await asyncio.to_thread(_drained, port) == 200

    said = sidecar.log()
    assert ("leave.restricted" in said, "--worker-headers-file" in said) == (not shown, not shown)
    assert ("leave.told" in said and "status=200" in said.replace('"status": 200', "status=200")) is shown
    assert SECRET not in said


def _drained(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", "/drain?timeout_s=30")
    with connection.getresponse() as answer:
        answer.read()
    connection.close()
    return answer.status


async def test_the_driver_shows_its_headers_with_every_call(worker: v2_servers.WorkerProcess) -> None:
    worker.start(*restricted(ALL))
    onnx_models.put(worker.repository, "m", onnx_models.scale(2.0))
    target = f"127.0.0.1:{worker.endpoint.grpc_port}"
    stranger = runtime.Runtime(target, access.Access(headers={"admin-key": "wrong"}))
    let_in = runtime.Runtime(target, access.Access(headers={"admin-key": SECRET}))
    try:
        for call in (stranger.index(), stranger.statistics(), stranger.unload("m")):
            with pytest.raises(errors.Restricted, match="--worker-headers-file"):
                await call
        with pytest.raises(errors.ModelFailed) as failed:
            await stranger.load("m", "")
        assert failed.value.failure.reason == "WorkerRestricted"

        await let_in.load("m", "")

        assert (await let_in.index()).loaded == {"m"}
        assert "m" in (await let_in.statistics()).models
        await let_in.unload("m")
    finally:
        await stranger.close()
        await let_in.close()


async def test_a_token_that_differs_from_the_workers_is_told_as_that(worker: v2_servers.WorkerProcess) -> None:
    token = worker.repository.parent / "worker.token"
    token.write_text("mine")
    worker.start(f"--control-token-file={token}")
    driver = runtime.Runtime(f"127.0.0.1:{worker.endpoint.grpc_port}", access.Access("yours"))
    try:
        with pytest.raises(errors.Restricted, match=r"--control-token-file.*--token-file"):
            await driver.index()
    finally:
        await driver.close()
