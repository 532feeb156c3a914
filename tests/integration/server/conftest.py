from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import pytest

from tests.support import server as servers


@pytest.fixture
async def server(tmp_path: pathlib.Path) -> AsyncIterator[servers.Running]:
    """A server with its embedded defaults and a worker of 2**30 bytes for each group it launches."""
    async with servers.running(tmp_path) as running:
        yield running
