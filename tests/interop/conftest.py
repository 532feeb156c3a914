"""Workers with both gRPC fronts, and the clients that ask them."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.interop import programs
from tests.support import onnx_models, worker_process

FRONTENDS = ("grpcio", "native")
_SLOW_TURNS = 400_000
"""A fifth of a second: far beyond the deadlines that clients set."""

Start = Callable[..., worker_process.Worker]


@pytest.fixture(scope="module", params=FRONTENDS)
def frontend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """ident (FP32 [batch, 4]), text (BYTES), slow."""
    models = tmp_path_factory.mktemp("models")
    onnx_models.put(models, "ident", onnx_models.identity())
    onnx_models.put(models, "text", onnx_models.identity("BYTES"))
    onnx_models.put(models, "slow", onnx_models.slow(_SLOW_TURNS))
    return models


@pytest.fixture(scope="module")
def start(frontend: str, repository: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a worker of its own with these flags; it lives no longer than the module's tests of one front."""
    chosen = f"--grpc-frontend={frontend}"
    with contextlib.ExitStack() as stack:

        def another(*given: str) -> worker_process.Worker:
            folder = tmp_path_factory.mktemp(frontend) / "worker"
            return stack.enter_context(worker_process.running(repository, folder, chosen, *given))

        yield another


@pytest.fixture(scope="module")
def worker(start: Start) -> Start:
    """Gives the worker that has these flags, the same to every test that asks for them."""
    return functools.cache(start)


@pytest.fixture(scope="session")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return programs.descriptors(tmp_path_factory.mktemp("descriptors"))
