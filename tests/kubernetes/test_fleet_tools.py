"""The command line against a server on Kubernetes: it reaches workers, their logs and the images by the server's address alone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http

from protos.tms.v1 import common_pb2, lease_pb2
from tests.kubernetes import fleet as fleets
from tests.support import system as systems

pytestmark = pytest.mark.slow  # real pods start, load and stop


def test_connect_leads_a_client_through_the_server(fleet: fleets.Fleet) -> None:
    lease = fleet.lease("three", name="tunnelled")
    with _connected(fleet, "tunnelled") as address:
        tensor = tritonclient.http.InferInput("INPUT", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
        with tritonclient.http.InferenceServerClient(address) as client:
            for _ in range(20):
                assert client.infer("m", [tensor]).as_numpy("OUTPUT")[0][0] == 3.0
    fleet.release(lease.id)


def test_logs_are_those_of_both_containers(fleet: fleets.Fleet) -> None:
    lease = fleet.lease()
    told = fleet.tmsctl("lease", "logs", lease.id, "--tail", "200", "--output", "json")
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert {each["source"] for each in lines} == {"worker", "sidecar"}
    assert {each["replica"] for each in lines} == set(fleet.pods(lease))


def test_images_are_allowed_and_forbidden(fleet: fleets.Fleet) -> None:
    worker = common_pb2.WorkerSpec(image="elsewhere.example/worker:1")
    own = lease_pb2.DedicatedPlacement(worker=worker)
    with pytest.raises(fleets.Refused, match="allow"):
        fleet.ask(dedicated=own)
    assert fleet.tmsctl("allowlist", "add", "elsewhere.example/*").returncode == 0
    assert "elsewhere.example/*" in fleet.tmsctl("allowlist", "list").stdout
    lease = fleet.ask(dedicated=own)
    fleet.until_reason(lease.id, "ImagePullFailed")
    assert fleet.tmsctl("allowlist", "remove", "elsewhere.example/*").returncode == 0
    with pytest.raises(fleets.Refused, match="allow"):
        fleet.ask(dedicated=own)


@contextlib.contextmanager
def _connected(fleet: fleets.Fleet, lease: str) -> Iterator[str]:
    """Runs `tmsctl lease connect` on free ports; gives the local address for HTTP, the first that it tells."""
    command = [str(systems.PROGRAMS / "tmsctl"), "lease", "connect", lease, "--output", "name"]
    process = subprocess.Popen(
        [*command, "--http", "0", "--grpc", "0", "--metrics", "0"],
        env={**os.environ, "TMS_TARGET": fleet.target, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip().removeprefix("http://")
    finally:
        process.terminate()
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()
