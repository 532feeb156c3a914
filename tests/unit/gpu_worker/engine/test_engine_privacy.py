"""Serving models tells nobody."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

SERVE = """
import sys
from gpu_worker.runtime import onnx_runtime
import onnxruntime
assert onnxruntime.get_available_providers()
"""


def test_the_runtime_leaves_no_trace_of_telemetry(tmp_path: pathlib.Path) -> None:
    assert traces_of(SERVE, tmp_path) == []


def test_the_library_itself_would_leave_one(tmp_path: pathlib.Path) -> None:
    """Shows that the test above can fail: as soon as this one does, the setting has lost its meaning."""
    assert traces_of("import onnxruntime", tmp_path) != []


def traces_of(script: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """Files that a script leaves in an environment that says nothing, not even that it is CI."""
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(folder), "HOME": str(folder)}
    root = pathlib.Path(__file__).resolve().parents[4]
    subprocess.run([sys.executable, "-B", "-c", script], env=environment, cwd=root, check=True)
    return list(folder.iterdir())
