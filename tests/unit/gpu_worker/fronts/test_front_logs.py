"""What the worker's logs say, and what they never hold."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import structlog
from gpu_worker import logs
logs.configure(20)
def work(given):
    held = given
    raise ValueError("told " + held[:0])
try:
    work("a-secret-of-a-client")
except ValueError:
    structlog.get_logger().exception("work.failed")
"""


def test_a_traceback_tells_the_way_and_no_values() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    (line,) = ran.stderr.splitlines()
    said = json.loads(line)
    assert said["event"] == "work.failed"
    assert "work" in [frame["name"] for frame in said["exception"][0]["frames"]]
    assert "a-secret-of-a-client" not in line
