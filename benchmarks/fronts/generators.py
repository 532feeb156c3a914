"""The load generators: one of our own in Go, h2load where it is installed, and Triton's Python client.

Each runs as a process of its own for a bounded time, in a closed loop: an answer sends the next request.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys

from benchmarks.fronts import models, requests
from tests.kubernetes.cluster import binaries

SECONDS = 2
INFER = f"/v2/models/{models.NAME}/infer"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
_GO = pathlib.Path(__file__).parent / "go"
_GENERATOR = binaries.Program("load", "load", ".", _GO)
H2LOAD = shutil.which("h2load")
NO_H2LOAD = "h2load is not installed (apt-get install nghttp2-client): its rows are left out"


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server listens on 127.0.0.1."""

    http: int
    grpc: int


@dataclasses.dataclass(frozen=True)
class Load:
    """What one run gave."""

    per_s: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    calls: int = 0


def grpc(at: Address, message: pathlib.Path, connections: int, in_flight: int, protocol: str = "grpc") -> Load:
    """Calls with headers that differ from call to call; `grpc-go` sends them through that client."""
    flags = ["-connections", str(connections), "-in-flight", str(in_flight), "-path", METHOD]
    return _go(protocol, at.grpc, message, *flags)


def http(at: Address, body: pathlib.Path, connections: int, header: str = "") -> Load:
    """One request in flight on each connection, with headers that differ from request to request."""
    return _go("http", at.http, body, "-connections", str(connections), "-path", INFER, "-header", header)


def h2load_grpc(at: Address, framed: pathlib.Path, connections: int, in_flight: int) -> Load:
    """The same call again and again: its header block never changes."""
    flags = ["-c", str(connections), "-m", str(in_flight), "-H", "content-type: application/grpc", "-H", "te: trailers"]
    return _h2load(f"http://127.0.0.1:{at.grpc}{METHOD}", framed, *flags)


def h2load_http(at: Address, body: pathlib.Path, connections: int, header: str) -> Load:
    """The same request again and again."""
    return _h2load(f"http://127.0.0.1:{at.http}{INFER}", body, "--h1", "-c", str(connections), "-H", header)


def tritonclient(at: Address, protocol: str, columns: int, in_flight: int) -> Load:
    """Triton's Python client, asynchronous, in one process."""
    port = at.http if protocol == "http" else at.grpc
    command = [sys.executable, "-m", "benchmarks.fronts.triton_client", protocol, f"127.0.0.1:{port}"]
    return _told([*command, str(columns), str(in_flight), str(SECONDS)])


def _go(protocol: str, port: int, body: pathlib.Path, *flags: str) -> Load:
    program = binaries.ensure([_GENERATOR])[_GENERATOR.name]
    command = [str(program), "-protocol", protocol, "-address", f"127.0.0.1:{port}", "-body", str(body)]
    return _told([*command, "-duration", f"{SECONDS}s", *flags])


def _told(command: list[str]) -> Load:
    return Load(**json.loads(_run(command)))


def _h2load(url: str, body: pathlib.Path, *flags: str) -> Load:
    assert H2LOAD is not None, NO_H2LOAD
    told = _run([H2LOAD, "-D", str(SECONDS), "-d", str(body), *flags, url])
    rate, failed = re.search(r"([\d.]+) req/s", told), re.search(r"(\d+) failed", told)
    # It counts by HTTP's status, which is 200 for failed gRPC calls too; what is sent was answered well before.
    if not rate or not failed or int(failed[1]):
        raise SystemExit(f"h2load did not succeed:\n{told}")
    return Load(float(rate[1]))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def check(at: Address, small: requests.Request) -> None:
    """One request each way through the generator that looks at the answers; SystemExit where one is not well."""
    grpc(at, small.message, 1, 1)
    http(at, small.binary, 1, small.head)
