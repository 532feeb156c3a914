"""The fixture of the folder."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import pytest

from tests.integration.processes import place


@pytest.fixture
async def site(tmp_path: pathlib.Path) -> AsyncIterator[place.Site]:
    made = place.Site(tmp_path)
    yield made
    await made.clear()
