"""The README's first command does what it says, also when it is interrupted."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.support import system as systems

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # trains, serves and waits for an expiry

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-u", "-m", "examples.digits.demo"]


def test_the_demo_runs_its_course_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(COMMAND, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=280)

    assert done.returncode == 0, done.stdout + done.stderr
    for told in ("HTTP JSON", "HTTP binary", "gRPC", "Renewed", "Expired", "nothing is left running"):
        assert told in done.stdout
    assert list(tmp_path.glob("tms-demo-*")) == []
    assert systems.processes_of(tmp_path) == []


def test_an_interrupted_demo_leaves_nothing(tmp_path: pathlib.Path) -> None:
    with subprocess.Popen(COMMAND, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any("Send the held-out digits" in line for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        demo.stdout.read()
        code = demo.wait(timeout=60)

    assert code == 130
    assert list(tmp_path.glob("tms-demo-*")) == []
    assert systems.processes_of(tmp_path) == []


def environment(scratch: pathlib.Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(scratch), "NO_COLOR": "1", "COLUMNS": "120"}
