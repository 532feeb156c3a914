"""Starts the servers under test, a real tritonserver and workers of ours, over the same models; ends them without a trace.

Must never leave a process or a piece of shared memory behind.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

from tests.conformance.triton import environment

SHARED_PREFIX = "tms_conformance_"
"""How the names of all shared memory of the suite's servers begin."""

_START_S = 90.0
_STOP_S = 30.0
_END_S = 10.0
_SHARED = pathlib.Path("/dev/shm")
_READY = "worker.ready"
_STARTED = ("Started GRPCInferenceService", "Started HTTPService", "Started Metrics Service")


class StartFault(Exception):
    """A server did not start; `reason` is the last line that it wrote."""

    def __init__(self, output: str) -> None:
        super().__init__(output[-4000:])
        self.reason = next(iter(reversed(output.splitlines())), "")


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that listens."""

    process: subprocess.Popen[str]
    http_port: int
    grpc_port: int

    def died(self) -> bool:
        """Whether it has ended by itself; to be asked once a connection broke, which comes a moment before the end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        return self.process.poll() is not None


@contextlib.contextmanager
def triton(repository: pathlib.Path, flags: collections.abc.Sequence[str]) -> collections.abc.Iterator[Server]:
    """A tritonserver with Python-backend models."""
    found = environment.ensure()
    shared = f"{SHARED_PREFIX}{os.getpid()}_{next(_numbers)}"
    ports = _free_ports(3)
    command = [
        str(found.server),
        f"--model-repository={repository}",
        f"--backend-directory={found.backends}",
        f"--cache-directory={found.backends.parent / 'caches'}",
        f"--backend-config=python,shm-region-prefix-name={shared}",
        *(f"--{front}-address=127.0.0.1" for front in ("http", "grpc")),
        *(f"--{front}-port={port}" for front, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
        *flags,
    ]
    try:
        with _running(command, os.environ | found.variables) as output:
            output.wait_for(*_STARTED)
            yield Server(output.process, ports[0], ports[1])
    finally:
        _sweep(shared)


@contextlib.contextmanager
def worker(repository: pathlib.Path, flags: collections.abc.Sequence[str]) -> collections.abc.Iterator[Server]:
    """A worker of ours."""
    command = [sys.executable, "-m", "gpu_worker", f"--model-repository={repository}"]
    command += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    command += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", *flags]
    with _running(command, dict(os.environ)) as output:
        output.wait_for(_READY)
        told = next(line for line in output.text().splitlines() if _READY in line)
        ports = json.loads(told)
        yield Server(output.process, ports["http"], ports["grpc"])


class Output:
    """What a program writes, read as it comes, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for(self, *marks: str) -> None:
        """Returns once each mark was in some line. Raises StartFault when the program ends before."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._ended or self._seen(marks), _START_S)
            if not done or not self._seen(marks):
                raise StartFault(self.text())

    def text(self) -> str:
        return "".join(self._lines)

    def join(self) -> None:
        """Waits until all is read; to be called once the program has ended."""
        self._thread.join(_STOP_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _seen(self, marks: collections.abc.Sequence[str]) -> bool:
        text = self.text()
        return all(mark in text for mark in marks)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@contextlib.contextmanager
def _running(
    command: collections.abc.Sequence[str], variables: collections.abc.Mapping[str, str]
) -> collections.abc.Iterator[Output]:
    process = subprocess.Popen(
        command,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    output = Output(process)
    try:
        yield output
    finally:
        _stop(process)
        output.join()


def _stop(process: subprocess.Popen[str]) -> None:
    """First asks, then ends the whole session: children of a server that died are not to outlive it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_STOP_S)


def _sweep(prefix: str) -> None:
    for path in _SHARED.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago: Triton takes no port 0."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _count() -> collections.abc.Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


_numbers = _count()
