from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.e2e import models
from tests.support import system as systems


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    """Models ``one``, ``two``, ``slow``, ``torch`` and ``broken``."""
    folder = tmp_path / "repository"
    models.double(folder, "one")
    models.double(folder, "two")
    models.slow(folder, "slow")
    models.torch(folder, "torch")
    models.broken(folder, "broken")
    return folder


@pytest.fixture
def system(tmp_path: pathlib.Path, repository: pathlib.Path) -> Iterator[systems.System]:
    """An installation with its embedded defaults."""
    with systems.running(tmp_path, repository) as running:
        yield running
