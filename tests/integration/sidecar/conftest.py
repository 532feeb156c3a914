"""Real ends for the sidecar: an S3 server, a proxy that cuts, sockets that answer as told."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from sidecar import values
from tests.support import onnx_models, v2_servers

from .control_plane import PATIENCE_S, ControlPlane, Sidecar
from .sources import model_of

BUCKET = "models"
ACCESS = {"access_key_id": "a-key-id-for-tests", "secret_access_key": "a-secret-for-tests", "region": "us-east-1"}


class Store:
    """A bucket on a real S3 server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = boto3.session.Session().client(
            "s3",
            endpoint_url=url,
            region_name=ACCESS["region"],
            aws_access_key_id=ACCESS["access_key_id"],
            aws_secret_access_key=ACCESS["secret_access_key"],
        )

    def put(self, name: str, path: str, data: bytes) -> values.SourceFile:
        tag = self.client.put_object(Bucket=BUCKET, Key=f"{name}/{path}", Body=data)["ETag"]
        return values.SourceFile(path=path, size_bytes=len(data), version=tag)

    def access(self, url: str = "") -> values.S3Access:
        return values.S3Access(endpoint_url=url or self.url, path_style=True, **ACCESS)


class Cutter:
    """A TCP proxy that ends every connection once `allow_bytes` have come back in all, until `mend`."""

    def __init__(self, target: tuple[str, int], allow_bytes: int) -> None:
        self._target = target
        self._left = allow_bytes
        self._lock = threading.Lock()
        self.answered_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def mend(self) -> None:
        with self._lock:
            self._left = 1 << 60

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        served = []
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                worker = threading.Thread(target=self._forward, args=(client,))
                worker.start()
                served.append(worker)
        for worker in served:
            worker.join()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            up = threading.Thread(target=_pump, args=(client, server))
            up.start()
            with contextlib.suppress(OSError):
                while data := server.recv(65536):
                    with self._lock:
                        data = data[: self._left]
                        self._left -= len(data)
                        self.answered_bytes += len(data)
                    if not data:
                        break
                    client.sendall(data)
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            up.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def store(s3_server: tuple[str, int]) -> Iterator[Store]:
    host, port = s3_server
    made = Store(f"http://{host}:{port}")
    made.client.create_bucket(Bucket=BUCKET)
    yield made
    for each in made.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        made.client.delete_object(Bucket=BUCKET, Key=each["Key"])
    made.client.delete_bucket(Bucket=BUCKET)
    made.client.close()


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    """A model directory with two files."""
    directory = tmp_path / "source"
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.onnx").write_bytes(b"weights" * 1000)
    (directory / "config.pbtxt").write_text('name: "digits"\nmax_batch_size: 8\n')
    return directory


def scaled(source: pathlib.Path, name: str, factor: float = 2.0) -> values.Model:
    return model_of(onnx_models.put(source, name, onnx_models.scale(factor)), name)


def ask(port: int, model: str, *, name: str = "INPUT") -> Any:
    body = {"inputs": [{"name": name, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/{model}/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)["outputs"][0]["data"]


@pytest.fixture
def worker(tmp_path: pathlib.Path) -> Iterator[v2_servers.WorkerProcess]:
    made = v2_servers.WorkerProcess(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    made = ControlPlane()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def sidecar(
    tmp_path: pathlib.Path, control: ControlPlane, worker: v2_servers.WorkerProcess
) -> AsyncIterator[Sidecar]:
    made = Sidecar(tmp_path, control, worker)
    yield made
    await made.kill()
