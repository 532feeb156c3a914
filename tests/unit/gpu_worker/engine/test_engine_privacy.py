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
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-B", "-c", SERVE], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_the_library_itself_would_leave_one(tmp_path: pathlib.Path) -> None:
    """Shows that the test above can fail: as soon as this one does, the setting has lost its meaning."""
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-B", "-c", "import onnxruntime"], env=environment, check=True)
    assert list(tmp_path.iterdir()) != []
