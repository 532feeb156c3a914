"""Starts V2 servers as real processes; the suite of the driver runs on each that this machine has."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys

from sidecar import values

PROGRAMS = pathlib.Path(sys.executable).parent


class WorkerProcess:
    """One tms-worker in explicit mode. `start` again after `kill` takes the same ports."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.repository = folder / "models"
        self.repository.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = {"http": 0, "grpc": 0, "metrics": 0}

    @property
    def endpoint(self) -> values.Endpoint:
        return values.Endpoint("127.0.0.1", self._ports["http"], self._ports["grpc"], self._ports["metrics"])

    def start(self, *extra: str) -> None:
        """Returns once it serves; `extra` are further flags of this start."""
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        flags = [
            f"--model-repository={self.repository}",
            "--model-control-mode=explicit",
            f"--ready-file={ready}",
            *(f"--{name}-address=127.0.0.1" for name in self._ports),
            *(f"--{name}-port={port}" for name, port in self._ports.items()),
            *extra,
        ]
        with (self._folder / "worker.log").open("ab") as log:
            self._process = subprocess.Popen([PROGRAMS / "tms-worker", *flags], stdout=log, stderr=log)
        while not ready.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=0.05)
                raise AssertionError(f"ended with {code}: {(self._folder / 'worker.log').read_text()[-2000:]}")
        self._ports = json.loads(ready.read_text())

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def kill(self) -> None:
        """As a crash does it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
