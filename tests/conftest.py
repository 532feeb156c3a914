"""Rules for the whole suite: in CI nothing is skipped but what needs a GPU."""

from __future__ import annotations

import os

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for tests that use onnxruntime themselves


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
