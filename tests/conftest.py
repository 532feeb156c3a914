"""Rules for the whole suite: in CI nothing is skipped but what needs a GPU. The database server that all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support import postgres
from tms_server.store import migrate, opening

# How long an example takes is the machine's affair; what hangs is stopped by the test's own time.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for tests that use onnxruntime themselves
# What a background job or nohup ignores is inherited by the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]  # noqa: ANN201 - pytest's own wrapper protocol
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and os.environ.get("CI")
        and not item.get_closest_marker("gpu")
    ):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI, where only GPU tests may be: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """One server for all tests of this process."""
    with postgres.serve() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: postgres.Server) -> str:
    """A database with the newest schema, to copy."""
    name = postgres_server.create()
    opening.open_database(postgres_server.url(name), migrate.bring_up).release()
    return name


@pytest.fixture
def postgres_url(postgres_server: postgres.Server, postgres_template: str) -> Iterator[str]:
    """A database of the test's own."""
    name = postgres_server.create(postgres_template)
    yield postgres_server.url(name)
    postgres_server.drop(name)
