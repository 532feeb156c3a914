"""Starts the programs that are measured, each as a process of its own, and stops exactly those."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

PROGRAMS = pathlib.Path(sys.executable).parent


@contextlib.contextmanager
def started(scratch: pathlib.Path, program: str, *flags: str) -> Iterator[dict[str, Any]]:
    """Runs a console script until the block ends; yields what it wrote to its ready file. SystemExit if it dies."""
    ready = scratch / f"{program}.ready.json"
    ready.unlink(missing_ok=True)
    with (scratch / f"{program}.log").open("w") as log:
        command = [str(PROGRAMS / program), *flags, f"--ready-file={ready}"]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield _when_ready(process, ready)
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextlib.contextmanager
def server(scratch: pathlib.Path, repository: pathlib.Path) -> Iterator[str]:
    """A control plane with its embedded defaults and one model repository named ``bench``; yields its address."""
    places = [f"--data-dir={scratch / 'state'}", f"--repository=bench={repository}"]
    with started(scratch, "tms-server", *places, "--api-port=0", "--metrics-port=0", "--stop-workers-at-exit") as ready:
        yield str(ready["api"])


@contextlib.contextmanager
def worker(scratch: pathlib.Path, repository: pathlib.Path, *flags: str) -> Iterator[dict[str, Any]]:
    """A worker that serves a repository; yields its ports on 127.0.0.1 as ``http``, ``grpc``, ``metrics``."""
    ports = [f"--{front}-port=0" for front in ("http", "grpc", "metrics")]
    addresses = [f"--{front}-address=127.0.0.1" for front in ("http", "grpc", "metrics")]
    with started(scratch, "tms-worker", f"--model-repository={repository}", *ports, *addresses, *flags) as ready:
        yield ready


def _when_ready(process: subprocess.Popen[bytes], ready: pathlib.Path) -> dict[str, Any]:
    while not ready.exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise SystemExit(f"{process.args!r} ended with {process.wait(timeout=0.05)}")
    answer: dict[str, Any] = json.loads(ready.read_text())
    return answer
