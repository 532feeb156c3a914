"""The whole system as a user runs it: the real programs as processes, reached over the wire only."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from protos.tms.v1 import common_pb2, lease_pb2, lease_pb2_grpc, pool_pb2, pool_pb2_grpc

PROGRAMS = pathlib.Path(sys.executable).parent
PATIENCE_S = 60.0
"""Bound on any one wait; a healthy system needs a small part of it."""


class System:
    """One installation in a folder of its own. `stop` leaves nothing behind, whatever was killed before."""

    def __init__(self, folder: pathlib.Path, repository: pathlib.Path, *flags: str) -> None:
        self.folder, self.repository, self._flags = folder, repository, flags
        self._server: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None
        self._port = 0

    def start(self) -> None:
        """Starts the control plane and returns once it answers; at each later start on the port of the first."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [
            str(PROGRAMS / "tms-server"),
            f"--data-dir={self.folder / 'state'}",
            f"--ready-file={ready}",
            f"--api-port={self._port}",
            "--metrics-port=0",
            *self.backend_flags(),
            *self._flags,
        ]
        with (self.folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while not ready.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._server.wait(timeout=0.05)
                raise AssertionError(f"tms-server ended with {code}: {self.log()[-2000:]}")
        self.target = json.loads(ready.read_text())["api"]
        self._port = int(self.target.rpartition(":")[2])
        self._channel = grpc.insecure_channel(self.target)

    def backend_flags(self) -> list[str]:
        """What the server is told of its workers and models."""
        return [f"--repository=models={self.repository}", "--stop-workers-at-exit"]

    def runs(self) -> bool:
        """Whether the server's process lives."""
        return self._server is not None and self._server.poll() is None

    def kill_server(self) -> None:
        """As a crash does it: no goodbye, workers left behind."""
        assert self._server is not None
        self._server.kill()
        self._server.wait()
        if self._channel is not None:
            self._channel.close()

    def stop(self) -> None:
        """Stops the server, and with it the workers; starts it again first where it was killed."""
        if self._server is not None and self._server.poll() is not None:
            self.start()
        if self._channel is not None:
            self._channel.close()
        if self._server is not None:
            self._server.terminate()
            assert self._server.wait(timeout=PATIENCE_S) == 0, self.log()[-3000:]

    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    @property
    def leases(self) -> lease_pb2_grpc.LeasesStub:
        assert self._channel is not None
        return lease_pb2_grpc.LeasesStub(self._channel)

    @property
    def names(self) -> lease_pb2_grpc.LeaseNamesStub:
        assert self._channel is not None
        return lease_pb2_grpc.LeaseNamesStub(self._channel)

    @property
    def pools(self) -> pool_pb2_grpc.PoolsStub:
        assert self._channel is not None
        return pool_pb2_grpc.PoolsStub(self._channel)

    def workers(self) -> list[pool_pb2.Worker]:
        assert self._channel is not None
        listed = pool_pb2_grpc.WorkersStub(self._channel).List(pool_pb2.ListWorkersRequest(), timeout=PATIENCE_S)
        return list(listed.workers)

    def until_workers(self, holds: Callable[[list[pool_pb2.Worker]], bool]) -> list[pool_pb2.Worker]:
        """Asks for the workers again and again until something holds of them; there is no stream of workers to wait on."""
        end_s, pause = time.monotonic() + PATIENCE_S, threading.Event()
        while not holds(workers := self.workers()):
            assert time.monotonic() < end_s, workers
            pause.wait(0.05)
        return workers

    def worker_pid(self, group_id: str) -> int:
        """Process of the inference server of a worker."""
        record = json.loads((self.folder / "state" / "groups" / group_id / "worker.pid.json").read_text())
        return int(record["pid"])

    def create(self, *models: common_pb2.ModelReference, **fields: Any) -> lease_pb2.Lease:
        return self.leases.Create(lease_pb2.CreateLeaseRequest(models=models, **fields), timeout=PATIENCE_S)

    def until(self, lease_id: str, holds: Callable[[lease_pb2.Lease], bool]) -> lease_pb2.Lease:
        """Follows a lease until something holds of it; fails with its last state when it ends or time is up before."""
        last: lease_pb2.Lease | None = None
        request = lease_pb2.WatchLeasesRequest(leases=[lease_id])
        try:
            for update in self.leases.Watch(request, timeout=PATIENCE_S):
                last = update.lease
                if holds(last):
                    return last
        except grpc.RpcError as error:
            raise AssertionError(f"{error.details()}; last seen: {last}") from error
        raise AssertionError(f"the watch ended; last seen: {last}")

    def until_state(self, lease_id: str, state: lease_pb2.LeaseState.ValueType) -> lease_pb2.Lease:
        return self.until(lease_id, lambda lease: lease.state == state)

    def active(self, *models: common_pb2.ModelReference, **fields: Any) -> lease_pb2.Lease:
        """Creates a lease and waits until it serves."""
        return self.until_state(self.create(*models, **fields).id, lease_pb2.LEASE_STATE_ACTIVE)

    def tmsctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the command line as a user would."""
        environment = {**os.environ, "TMS_TARGET": self.target, "NO_COLOR": "1"}
        command = [str(PROGRAMS / "tmsctl"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)


@contextlib.contextmanager
def running(folder: pathlib.Path, repository: pathlib.Path, *flags: str) -> Iterator[System]:
    """A system for the length of a block; afterwards no process of it is left, which is asserted."""
    system = System(folder, repository, *flags)
    system.start()
    try:
        yield system
    finally:
        system.stop()
        assert processes_of(folder) == []


def processes_of(folder: pathlib.Path) -> list[str]:
    """Command lines of living processes that name something below a folder."""
    lines = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(folder) in line:
                    lines.append(line)
    return lines


def kill(pid: int) -> None:
    """Ends one process that the system started, without a goodbye."""
    os.kill(pid, signal.SIGKILL)


def model(name: str, uri: str = "", declared_bytes: int = 2**20, framework: str = "") -> common_pb2.ModelReference:
    """A reference into the repository ``models``."""
    uri = uri or f"model://models/{name}"
    return common_pb2.ModelReference(name=name, uri=uri, declared_bytes=declared_bytes, framework=framework)


def infer(endpoint: common_pb2.Endpoint, name: str, shape: list[int], data: list[float]) -> list[float]:
    """One inference as JSON over HTTP: FP32 ``x`` in, the first output back."""
    tensor = {"name": "x", "datatype": "FP32", "shape": shape, "data": data}
    url = f"http://{endpoint.host}:{endpoint.http_port}/v2/models/{name}/infer"
    request = urllib.request.Request(url, data=json.dumps({"inputs": [tensor]}).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        outputs = json.load(answer)["outputs"]
    result: list[float] = outputs[0]["data"]
    return result
