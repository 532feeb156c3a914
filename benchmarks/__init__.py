"""Figures, each beside a reference taken in the same run. Never asserted in tests."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # the reference measurement calls onnxruntime itself
