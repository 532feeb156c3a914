"""h2spec, an independent judge of HTTP/2, against the own gRPC front."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping

import pytest

from tests.interop import http2_failures, programs
from tests.support import worker_process

_WAIT_S, _LONG_WAIT_S = 2, 5


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The titles of all cases, and of those that failed, by section and place."""

    cases: Mapping[str, str]
    failed: Mapping[str, str]


def judge(port: int, report: pathlib.Path, *cases: str, wait_s: int = _WAIT_S) -> Verdict:
    program = programs.go(programs.H2SPEC)
    command: list[str | pathlib.Path] = [
        program,
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-o",
        str(wait_s),
        "-j",
        report,
        *cases,
    ]
    subprocess.run(command, capture_output=True, timeout=300)  # a failed case is no failed run
    found: dict[str, str] = {}
    failed: dict[str, str] = {}
    for suite in ET.parse(report).getroot():
        for place, case in enumerate(suite, start=1):
            identity = f"{case.get('package')}/{place}"
            found[identity] = str(case.get("classname"))
            if len(case):
                failed[identity] = found[identity]
    return Verdict(found, failed)


@pytest.mark.slow  # a whole worker, and 145 connections
@pytest.mark.timeout(600)  # h2spec may have to be built
def test_the_own_front_passes_h2spec_but_for_what_is_explained(
    repository: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with worker_process.running(repository, tmp_path / "worker", "--grpc-frontend=native") as worker:
        port = worker.ports["grpc"]
        verdict = judge(port, tmp_path / "report.xml")
        failed = dict(verdict.failed)
        for case in verdict.failed:
            # A machine that does too much at once may be late; what is broken fails again.
            again = judge(port, tmp_path / "again.xml", case, wait_s=_LONG_WAIT_S)
            if not again.failed:
                del failed[case]
        assert worker.process.poll() is None
    assert len(verdict.cases) == http2_failures.CASES
    assert len(verdict.cases) - len(failed) >= http2_failures.LEAST_PASSED
    assert list(http2_failures.check(failed)) == []


def test_the_table_must_say_what_is_so() -> None:
    table = (http2_failures.Failure("a/1", "A", "why"), http2_failures.Failure("a/2", "B", "why"))
    assert list(http2_failures.check({"a/1": "A", "a/2": "B"}, table)) == []
    assert list(http2_failures.check({"a/1": "A", "a/2": "B", "a/3": "C"}, table)) == [
        "a/3 (C) fails, and no reason is given"
    ]
    assert list(http2_failures.check({"a/1": "A"}, table)) == ["a/2 (B) passes, and a reason is given"]
    assert list(http2_failures.check({"a/1": "A", "a/2": "X"}, table)) == ["a/2 is 'X', not 'B'"]
