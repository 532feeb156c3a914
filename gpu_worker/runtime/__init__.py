"""Frameworks that run models, behind one small port."""

from __future__ import annotations

import os

# ONNX Runtime's packages report to their maker unless told otherwise before the first import. A server that runs other
# people's models reports to nobody, unless its operator says so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
