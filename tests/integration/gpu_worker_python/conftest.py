from __future__ import annotations

import pathlib

import pytest


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "repository"
    path.mkdir()
    return path
