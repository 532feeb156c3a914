"""tms-worker as a process with the flags that a test chooses, on free ports of loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

WIDE_S = 60.0


@dataclasses.dataclass(frozen=True)
class Worker:
    """One that is ready; `ports` by front."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    log_file: pathlib.Path

    def address(self, front: str) -> str:
        return f"127.0.0.1:{self.ports[front]}"

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait(self) -> int:
        return self.process.wait(WIDE_S)


@contextlib.contextmanager
def running(repository: pathlib.Path, folder: pathlib.Path, *flags: str) -> Iterator[Worker]:
    """Gives the worker once it is ready; kills it if it still runs in the end. Its files lie in `folder`, its own."""
    folder.mkdir(parents=True)
    ready, log_file = folder / "ready.json", folder / "log"
    command = [sys.executable, "-m", "gpu_worker", f"--model-repository={repository}", f"--ready-file={ready}"]
    for front in ("http", "grpc", "metrics"):
        command += [f"--{front}-address=127.0.0.1", f"--{front}-port=0"]
    with log_file.open("wb") as log:
        process = subprocess.Popen([*command, *flags], stdout=log, stderr=log)
    try:
        _await_ready(process, ready, log_file)
        yield Worker(process, json.loads(ready.read_text()), log_file)
    finally:
        process.kill()
        process.wait(WIDE_S)


def _await_ready(process: subprocess.Popen[bytes], ready: pathlib.Path, log_file: pathlib.Path) -> None:
    while not ready.exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=0.02)
            raise AssertionError(f"the worker ended with {code}: {log_file.read_text()[-2000:]}")
