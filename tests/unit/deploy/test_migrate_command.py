"""What the chart's migration runs before servers of a new version start."""

from __future__ import annotations

import asyncio
import os
import pathlib
import subprocess
import sys

import pytest

from tests.unit.deploy import charts
from tms_server.store import migrate

pytestmark = pytest.mark.slow  # each starts the program itself


@pytest.fixture
def arguments() -> list[str]:
    """Those of the chart's own Job."""
    job = charts.only(charts.render(charts.POSTGRES), "Job", "tms-migrate")
    found: list[str] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def test_it_brings_the_database_of_the_environment_to_this_version(
    arguments: list[str], tmp_path: pathlib.Path
) -> None:
    url = f"sqlite:///{tmp_path / 'tms.db'}"
    for _ in range(2):  # a second time there is nothing to do
        assert _run(arguments, url).returncode == 0
    assert asyncio.run(migrate.current(url)) == migrate.head()


def test_it_fails_where_the_database_cannot_be_used(arguments: list[str], tmp_path: pathlib.Path) -> None:
    done = _run(arguments, f"sqlite:///{tmp_path}")
    assert done.returncode == 1
    assert "database_url" in done.stderr


def _run(arguments: list[str], url: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TMS_DATABASE_URL": url}
    return subprocess.run(
        [sys.executable, "-m", "tms_server", *arguments], env=environment, text=True, capture_output=True
    )
