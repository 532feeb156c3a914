"""The implementations that the contract suites run on."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import pytest

from tests.support import stores
from tms_server.ports import store as port


@pytest.fixture(params=["sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> AsyncIterator[port.Store]:
    opened = {"sqlite": stores.open_sqlite}[request.param]
    store = await opened(tmp_path / "data" / "tms.db")
    yield store
    await store.close()
