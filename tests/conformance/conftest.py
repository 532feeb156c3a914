"""Servers of a test's own, over models of its own."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.conformance import models, servers


@pytest.fixture
def repositories(tmp_path: pathlib.Path) -> models.Repositories:
    return models.Repositories.make(tmp_path)


@pytest.fixture(params=["triton", "worker"])
def start(
    request: pytest.FixtureRequest, repositories: models.Repositories
) -> Callable[..., AbstractContextManager[servers.Server]]:
    if request.param == "triton":
        return lambda *flags: servers.triton(repositories.triton, flags)
    return lambda *flags: servers.worker(repositories.ours, flags)
