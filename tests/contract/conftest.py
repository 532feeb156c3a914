"""The implementations that the contract suites run on."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import pytest

from tests.support import stores
from tms_server.ports import store as port


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> AsyncIterator[port.Store]:
    """The same store on either database."""
    if request.param == "sqlite":
        url = stores.url_of(tmp_path / "data" / "tms.db")
    else:
        url = request.getfixturevalue("postgres_url")
    store = await stores.open_store(url)
    yield store
    await store.close()
