"""Starts the servers that are measured, one at a time: our worker, a real tritonserver, MLServer."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import uv

from benchmarks import processes
from benchmarks.fronts import generators, models
from tests.conformance import servers as real

_LOCK = pathlib.Path(__file__).with_name("mlserver.lock")
_START_S = 60.0
_LOOK_S = 0.2


@contextlib.contextmanager
def worker(repository: pathlib.Path, folder: pathlib.Path, *flags: str) -> Iterator[generators.Address]:
    """Our worker over a repository; its own files lie in `folder`."""
    places = [f"--{front}-address=127.0.0.1" for front in ("http", "grpc", "metrics")]
    ports = [f"--{front}-port=0" for front in ("http", "grpc", "metrics")]
    command = [f"--model-repository={repository}", *places, *ports, *flags]
    with processes.started(folder, "tms-worker", *command) as ready:
        yield generators.Address(ready["http"], ready["grpc"])


@contextlib.contextmanager
def triton(folder: pathlib.Path, instances: int) -> Iterator[generators.Address]:
    """A tritonserver over the same model for its Python backend."""
    repository = folder / f"triton-{instances}"
    if not repository.exists():
        models.triton(folder, instances)
    with real.triton(repository, []) as server:
        yield generators.Address(server.http_port, server.grpc_port)


@contextlib.contextmanager
def mlserver(folder: pathlib.Path) -> Iterator[generators.Address]:
    """MLServer in an environment of its own, one process, no batching."""
    place = models.mlserver(folder)
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        http_port, grpc_port, metrics_port = (each.getsockname()[1] for each in taken)
    variables = {
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_HTTP_PORT": str(http_port),
        "MLSERVER_GRPC_PORT": str(grpc_port),
        "MLSERVER_METRICS_PORT": str(metrics_port),
        "MLSERVER_PARALLEL_WORKERS": "0",
        "MLSERVER_DEBUG": "false",
        "PYTHONPATH": str(place),
    }
    with (folder / "mlserver.log").open("w") as log:
        command = [str(_environment() / "bin" / "mlserver"), "start", str(place)]
        process = subprocess.Popen(command, env=os.environ | variables, cwd=place, stdout=log, stderr=log)
    try:
        _await(process, http_port)
        yield generators.Address(http_port, grpc_port)
    finally:
        process.terminate()
        process.wait(timeout=60)


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LOOK_S)
            connection.request("GET", f"/v2/models/{models.NAME}/ready")
            if connection.getresponse().status == http.client.OK:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_S)
    raise SystemExit("MLServer did not start")


def _environment() -> pathlib.Path:
    """MLServer's own environment in the cache, made once from what mlserver.lock pins."""
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tms"
    folder = base / f"mlserver-{hashlib.sha256(_LOCK.read_bytes()).hexdigest()[:16]}"
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        _uv("venv", "--quiet", "--relocatable", str(unfinished))
        _uv("pip", "install", "--quiet", "--require-hashes", "--python", str(unfinished), "-r", str(_LOCK))
        unfinished.rename(folder)
    return folder


def _uv(*words: str) -> None:
    subprocess.run([uv.find_uv_bin(), *words], check=True)
